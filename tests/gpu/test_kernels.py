"""The operators on the device: no worse than PyTorch's, with their gradients, and whatever is chosen for a shape."""

import pytest
import torch
from conftest import assert_no_worse

import fastdiff
from fastdiff import ops
from fastdiff.bench.cases import of, results, tensors, wanting_gradients, wide
from fastdiff.bench.gpu import cases, check
from fastdiff.runtime import triton

CASES = [*cases(small=True), *cases()] if torch.cuda.is_available() and triton.unavailable() is None else []
SMALL = [case for op in ops.OPS for case in of(op, "smallest")]
GRADIENTS = [case for op in ops.TRITON_OPS for case in of(op, "gpu-gradients")]


@pytest.mark.only_gpu
@pytest.mark.needs_triton
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_kernels_err_no_more_than_torch(case, device):
    check(case, device)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.op}-{case}")
def test_whatever_is_chosen_errs_no_more_than_torch(case, device):
    check(case, device, "auto")


@pytest.mark.only_gpu
@pytest.mark.needs_triton
@pytest.mark.parametrize("case", GRADIENTS, ids=lambda case: f"{case.op}-{case}")
def test_operators_and_their_gradients(case, device):
    inputs = case.make(device=device)

    def run(backend, inputs):
        leaves = wanting_gradients(inputs)
        with fastdiff.use(backend):
            found = results(ops.OPS[case.op](**leaves))
        directions = [torch.ones_like(y) for y in found]
        return [y.detach() for y in found] + list(torch.autograd.grad(found, tensors(leaves), directions))

    ours, theirs, exact = run("triton", inputs), run("reference", inputs), run("reference", wide(inputs))
    for mine, other, want in zip(ours, theirs, exact, strict=True):
        # A result sums at most as many terms as there are numbers.
        floor = float(want.abs().max()) * torch.finfo(case.dtype).eps
        terms = max(t.numel() for t in tensors(inputs))
        floor += terms**0.5 * torch.finfo(torch.float32).eps * float(want.abs().max())
        assert_no_worse(mine, other, want, floor=floor)


# Keys that fill no tile of 64 or 128, and few queries: a tile of 128 x 128 with one stage was once wrong for 77 keys.
SHAPES = [(2, 8, 256, 77, 40), (1, 8, 4096, 77, 40), (2, 8, 64, 77, 160), (2, 8, 100, 129, 80), (1, 2, 17, 1, 64)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_of_keys_that_fill_no_tile(shape, dtype, device):
    batch, heads, queries, keys, width = shape
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, heads, n, width).to(device, dtype) for n in (queries, keys, keys))
    ours, theirs = ops.attention(q, k, v), ops.attention.plain(q, k, v)
    exact = ops.attention.plain(q.double(), k.double(), v.double())
    eps = torch.finfo(dtype).eps + keys**0.5 * torch.finfo(torch.float32).eps
    assert_no_worse(ours, theirs, exact, floor=float(exact.abs().max()) * eps)


@pytest.mark.only_gpu
@pytest.mark.needs_triton
@pytest.mark.parametrize("tile", [(128, 128, 4, 1), (128, 64, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2)], ids=str)
@pytest.mark.parametrize("keys", [77, 256])
def test_a_tile_that_is_asked_for_is_right_or_refused(tile, keys, device):
    from fastdiff.kernels.attention.forward import attention_forward
    from fastdiff.kernels.attention.tiles import Tile

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 8, n, 40, device=device, dtype=torch.float16) for n in (1024, keys, keys))
    exact = ops.attention.plain(q.double(), k.double(), v.double())
    try:
        found = attention_forward(q, k, v, tile=Tile(*tile))
    except (ValueError, RuntimeError):  # too large for the device
        return
    found = found[0] if isinstance(found, tuple) else found
    assert_no_worse(found, ops.attention.plain(q, k, v), exact, floor=float(exact.abs().max()) * 1e-3)
