"""Rows whose variance is beyond float32's range, and the gradients of such rows, in Triton's interpreter."""

import math

import torch
from torch import Tensor

from fastdiff.kernels.ada_layer_norm import ada_layer_norm, ada_layer_norm_backward
from fastdiff.kernels.residual_ada_layer_norm import residual_ada_layer_norm
from fastdiff.ops import ada_layer_norm as op

ROWS = {
    "1e19": {3: 1e19}, "1e20": {3: 1e20}, "1e30": {3: 1e30}, "3e38": {3: 3e38}, "-3e38": {3: -3e38},
    "both ends": {3: 3e38, 5: -3e38}, "twice": {3: 3e38, 9: 3e38}, "mixed": {3: 1e30, 5: 3e38, 7: -1e25},
    "ordinary": {}, "infinity": {3: math.inf}, "NaN": {3: math.nan},
}  # fmt: skip


def rows(channels: int) -> Tensor:
    """One for each name, (1, names, channels)."""
    x = torch.randn(len(ROWS), channels, generator=torch.Generator().manual_seed(0))
    for row, places in zip(x, ROWS.values()):
        for place, value in places.items():
            row[place] = value
    return x[None]


def check(found: Tensor, true: Tensor) -> None:
    """Within a few roundings of each row's largest number; NaN where float64 has it."""
    assert torch.equal(torch.isnan(found), torch.isnan(true))
    for name, a, b in zip(ROWS, found[0].double(), true[0]):
        error, size = (a - b).abs().max().item(), b.abs().max().item()
        assert not error > 2e-6 * size + 1e-37, (name, error, size)


def forward() -> None:
    for channels in (40, 64):
        x = rows(channels)
        scale, shift = (0.5 * torch.randn(1, 1, channels) for _ in range(2))
        true = op.plain(x.double(), scale.double(), shift.double())
        check(ada_layer_norm(x, scale, shift), true)
        h, z = residual_ada_layer_norm(torch.zeros_like(x), x, scale=scale, shift=shift)
        assert torch.equal(h.nan_to_num(7.0), x.nan_to_num(7.0))
        check(z, true)
        for value in (1e30, 3e38):  # no deviation: what is left is the shift
            constant = torch.full((1, 2, 64), value)
            shift = torch.randn(1, 1, 64)
            found = ada_layer_norm(constant, torch.zeros_like(shift), shift)
            assert torch.equal(found, shift.expand(1, 2, 64)), value


def gradients() -> None:
    x = rows(64)
    scale, shift = (0.5 * torch.randn(1, 1, 64) for _ in range(2))
    gradient = torch.randn(x.shape)
    wide = x.double().requires_grad_()
    op.plain(wide, scale.double(), shift.double()).backward(gradient.double())
    found = ada_layer_norm_backward(gradient, x, scale, shift)["x"]
    assert wide.grad is not None
    check(found, wide.grad)
