"""One comparison with torch: the result is checked, then both are timed side by side, with the machine's own limits."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.cases import Case, Inputs, results, tensors, wanting_gradients, wide
from fastdiff.bench.heap import heap
from fastdiff.bench.timing import Timing, interleave, matmul_rate
from fastdiff.ops.op import Op


@dataclass(frozen=True)
class Row:
    """What was measured. copy: of as many bytes as the case must move. matmul_flops: a second, in a matrix product."""

    case: Case
    torch: Timing
    ours: Timing
    copy: Timing
    matmul_flops: float | None

    @property
    def ratio(self) -> float:
        """How many times as fast as torch."""
        return self.torch.median / self.ours.median

    @property
    def slower(self) -> bool:
        """Than torch, by more than the spread of the rounds."""
        return self.ours.p20 > self.torch.p80

    @property
    def share(self) -> float:
        """Of the copy's speed, or of the matrix product's where the case has flops."""
        if self.matmul_flops:
            return self.case.flops / self.ours.median / self.matmul_flops
        return self.copy.median / self.ours.median

    def record(self) -> dict[str, Any]:
        """For a file: everything in seconds and bytes."""
        case = self.case
        return {
            "shape": list(case.shape),
            "dtype": case.type_name,
            "detail": case.detail,
            "backward": case.backward,
            "bytes": case.bytes,
            "flops": case.flops,
            "ratio": self.ratio,
            "share": self.share,
            "matmul_flops": self.matmul_flops,
            "heap": heap(),
            **{name: asdict(getattr(self, name)) for name in ("torch", "ours", "copy")},
        }


def compare(
    case: Case, ours: Callable[..., Any], theirs: Callable[..., Any], *, seconds: float = 1.5
) -> tuple[Row, Callable[[], Any]]:
    """Check `ours` against float64, then time it against `theirs`, the same in plain PyTorch.

    Returns what was measured, and the call of `ours` that was timed. Raises AssertionError, and times nothing, if the
    error is more than twice that of `theirs`. seconds: about how long all takes.
    """
    ours, theirs, inputs = prepared(case, ours, theirs)
    check(case, ours, theirs, inputs)
    source = torch.ones(max(1, case.bytes // 8), device="cpu")
    target = torch.empty_like(source)
    functions = {"torch": _bare(theirs, inputs), "ours": lambda: ours(**inputs), "copy": lambda: target.copy_(source)}
    started = time.perf_counter()
    for function in functions.values():
        function()
    rounds = max(10, min(30, int(seconds / max(0.006, time.perf_counter() - started))))
    timings = interleave(functions, rounds=rounds)
    rate = matmul_rate(case.dtype) if case.flops else None
    return Row(case, timings["torch"], timings["ours"], timings["copy"], rate), functions["ours"]


def _bare(function: Callable[..., Any], inputs: Inputs) -> Callable[[], Any]:
    """The call of a function; of an operator in PyTorch without what its public call adds to PyTorch's own time."""
    gradients = isinstance(function, functools.partial)
    op: Any = function.args[0] if isinstance(function, functools.partial) else function
    if not isinstance(op, Op):
        return lambda: function(**inputs)
    a = op.arguments(**{name: value for name, value in inputs.items() if name != "cotangents"})
    if not gradients:
        return lambda: op.reference(a)
    wanted, cotangents = tensors(a._asdict()), inputs["cotangents"]
    return lambda: torch.autograd.grad([y for y in results(op.reference(a)) if y is not None], wanted, cotangents)


def prepared(
    case: Case, ours: Callable[..., Any], theirs: Callable[..., Any], device: str = "cpu"
) -> tuple[Callable[..., Any], Callable[..., Any], Inputs]:
    """Both functions, or those of the gradients where the case wants them, and what they are called with."""
    inputs = case.make(device=device)
    if not case.backward:
        return ours, theirs, inputs
    torch.manual_seed(0)
    with torch.no_grad():
        cotangents = [torch.randn_like(y) for y in results(theirs(**inputs))]
    of_ours, of_theirs = (functools.partial(_gradients, function) for function in (ours, theirs))
    return of_ours, of_theirs, {**wanting_gradients(inputs), "cotangents": cotangents}


def check(case: Case, ours: Callable[..., Any], theirs: Callable[..., Any], inputs: Inputs) -> None:
    """The largest error of `ours` is at most twice that of `theirs`, both against `theirs` in float64, plus rounding.

    The latter is one rounding of the result, and log2 of the reduction's length roundings in float32. Raises
    AssertionError.
    """
    exact = results(theirs(**wide(inputs)))
    found, allowed = results(ours(**inputs)), results(theirs(**inputs))
    if len(found) != len(exact):
        raise AssertionError(f"{case}: {len(found)} results instead of {len(exact)}")
    for number, (a, b, c) in enumerate(zip(found, allowed, exact)):
        if a.shape != c.shape or a.dtype != b.dtype:
            raise AssertionError(f"{case}: result {number} is {a.dtype} {tuple(a.shape)}, torch's {tuple(c.shape)}")
        if not c.numel():
            continue
        error, torchs = (float((result.double() - c).abs().max()) for result in (a, b))
        eps = torch.finfo(a.dtype).eps + math.log2(max(2, case.reduction)) * torch.finfo(torch.float32).eps
        bound = 2 * torchs + float(c.abs().max()) * eps
        if not error <= bound:  # NaN is not either
            raise AssertionError(
                f"{case}: result {number} is off by {error:.2e}, allowed {bound:.2e}; nothing was timed"
            )


def _gradients(function: Callable[..., Any], *, cotangents: Sequence[Tensor], **inputs: Any) -> tuple[Tensor, ...]:
    """Of all tensors among the arguments, in their order."""
    return torch.autograd.grad(results(function(**inputs)), tensors(inputs), cotangents)
