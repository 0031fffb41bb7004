"""How a model's time grows with resolution, batch, sequence length, channels and threads, with fitted exponents.

Along an axis the time is about c n^p; p is the slope of log time over log n, fitted by least squares. Beside it are the
exponents of the multiply-adds, and of the bytes of parameters and activations that the convolutions and linear layers
read and write, counted, not measured. Time that grows more slowly than both is overhead, or cores left idle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.bench.records import Row
from fastdiff.bench.timing import interleave
from fastdiff.errors import unknown
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.parts.counting import multiply_adds
from fastdiff.models.unet import UNet, UNetConfig

_HEAVY = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Case:
    """One size: model, network's arguments, threads. n: the value of the axis."""

    axis: str
    n: int
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
    threads: int | None = None


def _unet(channels: int, size: int, batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = UNetConfig(
        (channels, 2 * channels, 2 * channels), 1, (2,), head_channels=32, groups=8, embedding_channels=128
    )
    x = torch.randn(batch, 3, size, size, device="cpu").contiguous(memory_format=torch.channels_last)
    model = UNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, (x, torch.full((batch,), 500.0, device="cpu"))


def _dit(tokens: int, channels: int, batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    side = 2 * round(tokens**0.5)
    config = DiTConfig(input_size=side, hidden_size=channels, depth=4, num_heads=channels // 64, num_classes=10)
    x, t = torch.randn(batch, 4, side, side, device="cpu"), torch.full((batch,), 500.0, device="cpu")
    return DiT(config), (x, t, torch.zeros(batch, dtype=torch.long, device="cpu"))


def cases(axis: str, *, small: bool = False) -> list[Case]:
    """The sizes along an axis. small: two of the least."""
    threads = sorted({1, 2, 4, 8, 16, torch.get_num_threads()} & set(range(1, torch.get_num_threads() + 1)))
    made = {
        "resolution": [Case("resolution", n, partial(_unet, 64, n, 1)) for n in (16, 32, 64, 128)],
        "batch": [Case("batch", n, partial(_unet, 64, 32, n)) for n in (1, 2, 4, 8, 16)],
        "channels": [Case("channels", n, partial(_unet, n, 32, 1)) for n in (32, 64, 128, 256)],
        "sequence": [Case("sequence", n, partial(_dit, n, 256, 1)) for n in (64, 256, 1024, 2304)],
        "threads": [Case("threads", n, partial(_unet, 64, 64, 1), threads=n) for n in threads],
    }
    if axis not in made:
        raise unknown("axis", axis, made)
    return made[axis][:2] if small else made[axis]


AXES = ("resolution", "batch", "channels", "sequence", "threads")


def run(axes: Sequence[str] = AXES, *, rounds: int = 7, small: bool = False) -> tuple[list[Row], dict[str, Any]]:
    """(rows, by axis the fitted exponents of time, multiply-adds and bytes). Sizes of an axis are timed in turns."""
    rows, fits = [], {}
    for axis in axes:
        found = _measure(cases(axis, small=small), rounds)
        rows += found
        n = [row["n"] for row in found]
        fits[axis] = {
            "time": exponent(n, [row["seconds"]["ours"]["median"] for row in found]),
            "time in PyTorch": exponent(n, [row["seconds"]["torch"]["median"] for row in found]),
            "multiply-adds": exponent(n, [row["flops"] / 2 for row in found]),
            "bytes": exponent(n, [row["bytes"] for row in found]),
        }
    return rows, fits


def exponent(n: Sequence[float], y: Sequence[float]) -> dict[str, float] | None:
    """Slope of log y over log n and its standard error (0 for two points); None for fewer than two sizes."""
    if len(set(n)) < 2:
        return None
    a, b = np.log(n), np.log(y)
    slope, intercept = np.polyfit(a, b, 1)
    left = b - slope * a - intercept
    free = max(1, len(a) - 2)
    return {
        "exponent": float(slope),
        "error": float(np.sqrt(np.square(left).sum() / free / np.square(a - a.mean()).sum())),
    }


def _measure(chosen: Sequence[Case], rounds: int) -> list[Row]:
    functions: dict[str, Callable[[], object]] = {}
    counted: dict[int, tuple[int, int]] = {}
    torch.manual_seed(0)
    for case in chosen:
        model, arguments = case.make()
        model.eval().requires_grad_(False)
        counted[case.n] = (2 * multiply_adds(model, *arguments), moved_bytes(model, *arguments))
        for backend in ("auto", "reference"):
            functions[f"{case.n} {backend}"] = _call(model, arguments, backend, case.threads)
    timings = interleave(functions, rounds=rounds, warmup=1)
    return [
        {
            "name": f"{case.axis} {case.n}",
            "axis": case.axis,
            "n": case.n,
            "seconds": {"ours": asdict(timings[f"{case.n} auto"]), "torch": asdict(timings[f"{case.n} reference"])},
            "baseline": "torch",
            "flops": counted[case.n][0],
            "bytes": counted[case.n][1],
        }
        for case in chosen
    ]


def _call(model: nn.Module, arguments: tuple[Tensor, ...], backend: str, threads: int | None) -> Callable[[], object]:
    import fastdiff

    def call() -> object:
        with torch.inference_mode(), fastdiff.use(backend), _threads(threads):
            return model(*arguments)

    return call


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def moved_bytes(model: nn.Module, *arguments: Tensor) -> int:
    """Inputs, outputs and weights of every convolution and linear layer in a call, once each."""
    total = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        weights = sum(p.numel() * p.element_size() for p in layer.parameters(recurse=False))
        total += weights + sum(t.numel() * t.element_size() for t in (inputs[0], output))

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, _HEAVY)]
    try:
        with torch.no_grad():
            model(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return total
