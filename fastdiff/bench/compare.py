"""One comparison with torch: the result is checked, then both are timed side by side, with the machine's own limits."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fastdiff.bench.timing import Timing, interleave, matmul_rate

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """What an operator is given in one row of the table.

    shape, dtype, detail: for the reader. make: positional and keyword arguments of both functions. bytes: the least
    that must be read and written. flops: multiplications and additions, where they bound the time. reduction: how many
    numbers are summed up for one of the result. backward: the gradients of all inputs that require one are computed as
    well, and they are what is checked.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Inputs] = field(repr=False)
    bytes: int
    flops: int = 0
    detail: str = ""
    reduction: int = 1
    backward: bool = False

    def __str__(self) -> str:
        words = ("x".join(map(str, self.shape)), _name(self.dtype), self.detail, "backward" if self.backward else "")
        return "-".join(word for word in words if word).replace(" ", "-").replace(",", "")


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
            "dtype": _name(case.dtype),
            "detail": case.detail,
            "backward": case.backward,
            "bytes": case.bytes,
            "flops": case.flops,
            "ratio": self.ratio,
            "share": self.share,
            "matmul_flops": self.matmul_flops,
            **{name: asdict(getattr(self, name)) for name in ("torch", "ours", "copy")},
        }


def compare(
    case: Case, ours: Callable[..., Any], theirs: Callable[..., Any], *, seconds: float = 1.5
) -> tuple[Row, Callable[[], Any]]:
    """Check `ours` against float64, then time it against `theirs`, the same in plain PyTorch.

    Returns what was measured, and the call of `ours` that was timed. Raises AssertionError, and times nothing, if the
    error is more than twice that of `theirs`. seconds: about how long all takes.
    """
    torch.manual_seed(0)
    arguments, options = case.make()
    if case.backward:
        with torch.no_grad():
            cotangent = torch.randn_like(theirs(*arguments, **options))
        arguments = (cotangent, *arguments)
        ours, theirs = (functools.partial(_gradients, function) for function in (ours, theirs))
    check(case, ours, theirs, arguments, options)
    source = torch.ones(max(1, case.bytes // 8))
    target = torch.empty_like(source)
    functions = {
        "torch": lambda: theirs(*arguments, **options),
        "ours": lambda: ours(*arguments, **options),
        "copy": lambda: target.copy_(source),
    }
    started = time.perf_counter()
    for function in functions.values():
        function()
    rounds = max(10, min(30, int(seconds / max(0.006, time.perf_counter() - started))))
    timings = interleave(functions, rounds=rounds)
    rate = matmul_rate(case.dtype) if case.flops else None
    return Row(case, timings["torch"], timings["ours"], timings["copy"], rate), functions["ours"]


class Reducing(Protocol):
    """What `check` must know of a case, beside its name."""

    @property
    def reduction(self) -> int:
        """How many numbers are summed up for one of the result."""


def check(
    case: Reducing,
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    arguments: Sequence[Any],
    options: dict[str, Any],
) -> None:
    """The largest error of `ours` is at most twice that of `theirs`, both against `theirs` in float64, plus rounding.

    The latter is one rounding of the result, and log2 of the reduction's length roundings in float32. Raises
    AssertionError.
    """
    exact = _tensors(theirs(*map(_wide, arguments), **{name: _wide(value) for name, value in options.items()}))
    found, allowed = _tensors(ours(*arguments, **options)), _tensors(theirs(*arguments, **options))
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


def _gradients(
    function: Callable[..., Tensor], cotangent: Tensor, *arguments: Any, **options: Any
) -> tuple[Tensor, ...]:
    """Of all arguments that require one, in their order."""
    wanted = [v for v in (*arguments, *options.values()) if isinstance(v, Tensor) and v.requires_grad]
    return torch.autograd.grad(function(*arguments, **options), wanted, cotangent)


def _wide(value: Any) -> Any:
    """The same in float64."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_wide, value))
    return value


def _tensors(result: Any) -> list[Tensor]:
    return [t.detach() for t in ([result] if isinstance(result, Tensor) else result)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
