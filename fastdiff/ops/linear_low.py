"""A linear layer in lower precision on a CPU, for inference: its factors are rounded to bfloat16 or to 8-bit integers,
the sums and all that follows are float32. `fastdiff.optimize(model, precision=...)` puts it into a model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.linear import Arguments, linear
from fastdiff.ops.tensors import address, contiguous, dense, rows
from fastdiff.runtime import choice, contents
from fastdiff.runtime.memory import empty
from fastdiff.runtime.native import core

PRECISIONS: tuple[str, ...] = ("bf16", "int8")
MOST_INPUTS = 1 << 16  # of which the sums of 8-bit products stay within 32 bits
# RMS of a weight's 8-bit rounding, in units of the weight's, from which on bfloat16 is taken: 16 times bfloat16's own
# (2^-8 / sqrt(3) of a power of two, 0.155% of numbers of all sizes), as `verify` allows results of int8.
_COARSE = 0.025
_NOT_KEPT = "the weight is an inference tensor, whose changes cannot be seen: nothing made of it could be kept"


def implementation(precision: str) -> str:
    """Who multiplies on this machine, the fastest first: "tiles" (AMX, by PyTorch's oneDNN), "instructions" (AVX-512's
    for bfloat16 or 8-bit integers), or "plain" (products of float32, which are right and gain no time)."""
    if precision == "bf16" and core.has_linear():
        return "tiles"
    return "instructions" if core.has_low_precision(precision == "int8") else "plain"


def low_linear(a: Arguments, precision: str, by: str | None = None) -> Tensor:
    """`fastdiff.ops.linear` of float32 tensors with x and the weight in lower precision.

    a: checked arguments of one weight, on the CPU: x (B, S, K), weight (N, K). precision: "bf16", both factors rounded
    to bfloat16, to nearest, even; "int8", the rows of the weight and of x each with a scale of their own, the largest
    number of a row being 127. by: of `implementation`, where it is not the best. Returns (B, S, N) in float32.

    A row of x with an infinity or NaN gives what float32 gives in bf16, and NaN in int8. The weight is packed once and
    again when it changes. Under `fastdiff.use("reference")` PyTorch computes in float32.
    """
    if choice.current() == "reference" or not a.x.numel():
        return linear.reference(a)
    if not contents.watchable(a.weight):
        choice.note("linear", _NOT_KEPT)
        return linear.reference(a)
    by = by or implementation(precision)
    ready = packed(a.weight, precision, a.glu, by)
    return _by_torch(a, ready) if by == "tiles" else _by_kernel(a, ready, precision)


def coarse(weight: Tensor) -> bool:
    """Whether int8 rounds a weight (N, K) too much: of white inputs the products would be off by over 2.5%."""
    weight = weight.detach()
    scale = weight.abs().amax(1, keepdim=True) / 127
    error = (weight / scale).round_().mul_(scale).sub_(weight).nan_to_num_(0)  # a row of zeros is exact
    return float(error.norm()) > _COARSE * float(weight.norm())


def packed(weight: Tensor, precision: str, glu: bool, by: str) -> Tensor:
    """The weight as an implementation reads it, kept while it stays as it is now."""
    kept = contents.of(weight).derived
    key = f"linear {precision} {glu} {by if by == 'tiles' else core.isa()}"
    if key not in kept:
        kept[key] = weight.detach().bfloat16() if by == "tiles" else _pack(weight.detach(), precision, glu)
    found: Tensor = kept[key]
    return found


def nbytes(shape: tuple[int, int], precision: str, glu: bool = False) -> int:
    """Of a weight of this shape once it is packed."""
    outputs, inputs = shape
    if precision == "bf16" and implementation(precision) == "tiles":
        return 2 * outputs * inputs
    return int(core.low_weight_bytes(inputs, outputs // 2 if glu else outputs, glu, precision == "int8"))


def _pack(weight: Tensor, precision: str, glu: bool) -> Tensor:
    weight, int8 = dense(weight), precision == "int8"
    outputs, inputs = weight.shape
    size = core.low_weight_bytes(inputs, outputs // 2 if glu else outputs, glu, int8)
    room = empty((size // 4,), dtype=torch.float32)
    core.low_linear_weight(
        room.data_ptr(), (weight.data_ptr(), 0, weight.stride(0), outputs), inputs, glu, int8,
        torch.get_num_threads(),
    )  # fmt: skip
    return room


def _by_kernel(a: Arguments, ready: Tensor, precision: str) -> Tensor:
    x = dense(a.x)
    batch, tokens, inputs = x.shape
    outputs = a.products // (2 if a.glu else 1)
    held: list[Tensor] = []  # copies, until the kernel has run
    bias = contiguous(a.bias)
    out = empty((batch, tokens, outputs), dtype=x.dtype)
    core.low_linear(
        out.data_ptr(), rows(x, held), ready.data_ptr(), address(bias),
        rows(a.gate, held), rows(a.residual, held), a.activation, a.glu, (batch, tokens, inputs, outputs),
        precision == "int8", torch.get_num_threads(),
    )  # fmt: skip
    return out


def _by_torch(a: Arguments, ready: Tensor) -> Tensor:
    """By oneDNN, which rounds the sums to bfloat16 as well."""
    y = F.linear(a.x.bfloat16(), ready).float()
    if a.bias is not None:
        y += a.bias
    return linear.follow(y, a, inplace=True)


def exactly(a: Arguments) -> Tensor:
    """The same in float64, to measure an error by."""
    wide = [each.double() if isinstance(each, Tensor) else each for each in a]
    return linear.reference(Arguments(*wide))  # type: ignore[arg-type]
