"""A graph computes what was captured, also where torch.fx would write it into code that means something else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.compiler.report import reports_of


def steps(n, x):
    n **= 2
    return x * n + n


def counted(x, start):
    total = x.shape[1]
    once = total
    total += start
    return x * once + total


WRITTEN = {
    "-1 ** n": lambda x, n: x * (-1) ** n,
    "-2.0 ** n": lambda x, n: x + (-2.0) ** n,
    "rpow": lambda x, n: x * n.__rpow__(-3),
    "torch.pow": lambda x, n: x * torch.pow(-2, n),
    "-0.5 ** float": lambda x, n: x * (-0.5) ** n.float(),
    "-inf ** n": lambda x, n: (-float("inf")) ** n + x,
    "**= of a tensor": lambda x, n: steps(n + 0, x),
    "a size, then +=": lambda x, n: counted(x, 3),
    "-1 ** size": lambda x, n: x * (-1) ** x.shape[0] + (-1) ** x.shape[1],
    "-1 * n": lambda x, n: -1 * n - -x,
    "~": lambda x, n: ~n + x,
    "-1 // n": lambda x, n: -1 // (n + 1) + x,
    "-7 % n": lambda x, n: -7 % (n + 2) + x,
    "-1 - n": lambda x, n: -1 - n + x,
    "1 << n": lambda x, n: (1 << n) + x,
    "nan": lambda x, n: torch.where(n > 1, float("nan"), x),
    "inf": lambda x, n: torch.where(n > 1, -float("inf"), x).clamp(max=float("inf")),
    "slices": lambda x, n: x[..., -2:, None] + n[::2],
    "dtypes": lambda x, n: (x.to(torch.float64) + n.to(dtype=torch.int8)).float(),
    "constant ** size": lambda x, n: x * 2.0 ** -x.shape[1],
    "compared": lambda x, n: (n > -1).float() + (n >= -1) * x,
}


class Written(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.how = WRITTEN[how]

    def forward(self, x, n):
        return self.how(x * self.scale, n)


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("gradient", [False, True], ids=["fast", "a gradient is wanted"])
def test_operators_on_constants(how, gradient):
    model = fastdiff.optimize(Written(how).eval())
    for size in (4, 6, 8):
        x, n = torch.randn(3, size), torch.arange(size)
        with torch.set_grad_enabled(gradient):
            found, expected = model(x, n), model._call_impl(x, n)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert len(reports_of(list(model.parameters()))) == 2
    assert all((report.fallback is not None) == gradient for report in reports_of(list(model.parameters())))
