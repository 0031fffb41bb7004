"""Every candidate of linear layers and layer norms on the device, by the rule of numerics, and the same bits twice."""

import itertools

import pytest
import torch

from fastdiff import ops
from fastdiff.runtime import agreement

pytestmark = [pytest.mark.only_gpu, pytest.mark.needs_triton]
HALVES = (torch.float16, torch.bfloat16)
LINEAR = [
    ((2, 256, 1152, 1152), dict(gate=True, residual=True)), ((2, 200, 328, 648), dict(residual=True)),
    ((1, 300, 320, 2560), dict(activation="gelu", glu=True)), ((2, 77, 77, 250), dict(activation="silu", glu=True)),
    ((2, 100, 64, 96), dict(activation="gelu_tanh")), ((2, 1, 1152, 6912), {}), ((5, 1, 1030, 2050), {}),
]  # fmt: skip
NORMS = [(2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (3, 77, 200), (2, 1, 320)]


def agree(op, a):
    theirs, exact = op.plainly(a, False), op.plainly(agreement.widened(a), False)
    found = op.candidates(a)
    for candidate in found:
        first, second = candidate.run(a), candidate.run(a)
        assert agreement.disagreement(first, theirs, exact) is None, candidate.name
        assert all(torch.equal(x, y) for x, y in zip(agreement.tensors(first), agreement.tensors(second))), (
            candidate.name
        )
    return [candidate.name for candidate in found]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("shape", "options"), LINEAR, ids=str)
def test_linear_layers(shape, options, dtype, device):
    from fastdiff.bench.cases.linear import make

    a = ops.linear.arguments(**make(shape, dtype, device=device, **options))
    assert "triton" in agree(ops.linear, a)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("shape", "gated"), [*itertools.product(NORMS, [False, True])], ids=str)
def test_layer_norms(shape, gated, dtype, device):
    torch.manual_seed(0)
    x, y = (torch.randn(shape).to(device, dtype) for _ in range(2))
    row = torch.randn(shape[0], 1, 6 * shape[2]).to(device, dtype).chunk(6, -1)
    op = ops.residual_ada_layer_norm
    a = op.Arguments(y, x, *row[:3]) if gated else op.Arguments(y, x, weight=row[0][0, 0], bias=row[1][0, 0])
    assert "triton" in agree(op, a)
