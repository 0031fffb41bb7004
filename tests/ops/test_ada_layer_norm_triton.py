"""The Triton kernel of ada_layer_norm: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import pytest
from triton_process import TARGETS, compile_for, interpret

NUMBERS = """
import itertools, torch
from fastdiff.kernels.ada_layer_norm import ada_layer_norm
from fastdiff.ops import ada_layer_norm as op
reference = op.plain.positional
torch.manual_seed(0)
shapes, dtypes = [(2, 3, 7), (1, 2, 64), (2, 4, 1152), (0, 2, 8)], [torch.float32, torch.float16]
for shape, dtype, affine in itertools.product(shapes, dtypes, [False, True]):
    b, s, c = shape
    scale, shift = torch.randn(b, 1, 6 * c).to(dtype).chunk(6, dim=-1)[2:4]
    x = (50 + torch.randn(shape)).to(dtype)
    options = {"weight": torch.randn(c).to(dtype), "bias": torch.randn(c).to(dtype)} if affine else {}
    ours, theirs = ada_layer_norm(x, scale, shift, **options), reference(x, scale, shift, **options)
    exact = reference(x.double(), scale.double(), shift.double(), **{k: v.double() for k, v in options.items()})
    assert ours.dtype == dtype and ours.shape == exact.shape
    if exact.numel():
        error, allowed = (float((y.double() - exact).abs().max()) for y in (ours, theirs))
        floor = float(exact.abs().max()) * (torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps)
        assert error <= 2 * allowed + floor, (shape, dtype, affine, error, allowed)
print("ok")
"""


def test_numbers_in_the_interpreter():
    interpret(NUMBERS)


GRADIENTS = """
import itertools, torch
import torch.nn.functional as F
from fastdiff.kernels.ada_layer_norm_backward import ada_layer_norm_backward
from fastdiff.ops import ada_layer_norm as op
reference = op.plain.positional
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN

def gradients(tensors, eps, grad):
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    out = reference(**leaves, eps=eps)
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad)))

shapes, dtypes = [(2, 7, 7), (1, 70, 64), (2, 4, 1152), (1, 1, 5), (0, 2, 8)], [torch.float32, torch.float16]
for shape, dtype, affine, whole in itertools.product(shapes, dtypes, *[[False, True]] * 2):
    b, s, c = shape
    scale, shift = torch.randn(b, s if whole else 1, 6 * c).to(dtype).chunk(6, dim=-1)[2:4]
    if whole:
        shift = shift[:, :1]  # one of each kind
    x, grad = ((m + torch.randn(b, s, 2 * c)).to(dtype)[..., :c] for m in (20, 0))
    tensors = {"x": x, "scale": scale, "shift": shift}
    tensors |= {"weight": torch.randn(c).to(dtype), "bias": torch.randn(c).to(dtype)} if affine else {}
    ours = ada_layer_norm_backward(grad, **tensors, eps=1e-6)
    theirs = gradients(tensors, 1e-6, grad)
    exact = gradients({name: t.double() for name, t in tensors.items()}, 1e-6, grad.double())
    # Sums of products err by eps times the absolute values of their terms, bounded by those of the largest factors. The
    # mean is rounded to eps |x|, so normalized values err by that over the deviation.
    eps = torch.finfo(torch.float32).eps
    size = 0.0
    if exact["x"].numel():
        deviation = (x.double().var(-1, correction=0) + 1e-6).sqrt().min()
        normal = F.layer_norm(x.double(), (c,), eps=1e-6).abs().max()
        factors = [grad, 1 + scale.abs(), *([tensors["weight"]] if affine else [])]
        size = float(torch.stack([f.double().abs().max().clamp_min(1) for f in factors]).prod())
        size *= float((1 + normal + (tensors["bias"].abs().max() if affine else 0)) * (1 + x.abs().max() / deviation))
        size *= float((1 / deviation).clamp_min(1)) * float(1 + normal)
    for name, want in exact.items():
        mine = ours[name]
        assert mine.dtype == dtype and mine.shape == want.shape, name
        if not want.numel():
            continue
        error, allowed = (float((t.double() - want).abs().max()) for t in (mine, theirs[name]))
        terms = b * s if name in ("weight", "bias") else s if want.shape[1] == 1 else 1
        floor = float(want.abs().max()) * torch.finfo(dtype).eps + terms**0.5 * eps * size
        assert error <= 2 * allowed + floor, (shape, dtype, affine, whole, name, error, allowed, floor)
print("ok")
"""


def test_gradients_in_the_interpreter():
    interpret(GRADIENTS)


COMPILE = """
from fastdiff.kernels.ahead_of_time import compile_variant, usage
from fastdiff.kernels.norm_variants import of_ada_layer_norm
cases = [("forward", d, {}) for d in ("fp32", "fp16", "bf16")] + [("backward", d, {}) for d in ("fp32", "bf16")]
for kernel, dtype, options in [*cases, ("backward", "fp16", {"rows": True})]:
    found = usage(compile_variant(of_ada_layer_norm(kernel, dtype, 1152, **options), target))
    assert found.stack == 0, (kernel, dtype, options, found)
print("ok")
"""


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target, tmp_path):
    compile_for(target, f"target = {target!r}" + COMPILE, str(tmp_path))
