"""What an operator is given: one row of a table of a benchmark, one parameter of a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]

# Models whose shapes benchmarks/roofline.py takes: the first two make pictures of 512 and 1024 pixels.
STABLE_DIFFUSION, SDXL, DIT = "Stable Diffusion 1.5, 512 px", "SDXL, 1024 px", "DiT-XL/2, 256 and 512 px"
MODELS = (STABLE_DIFFUSION, SDXL, DIT)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
GPU_DTYPES = DTYPES[:3]


@dataclass(frozen=True)
class Case:
    """op: the operator's name. shape, dtype, detail: for the reader. make: the arguments of a call by their names, on
    the device that it is given (`make(device="cpu")`), the same ones every time. bytes: the least that must be read and
    written. flops: multiplications and additions, where they bound the time. reduction: how many numbers are summed up
    for one of the result. backward: the gradients of all tensors among the arguments are computed as well, and they are
    what is checked.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[..., Inputs] = field(repr=False)
    bytes: int
    flops: int = 0
    detail: str = ""
    reduction: int = 1
    backward: bool = False

    def __str__(self) -> str:
        words = ("x".join(map(str, self.shape)), self.type_name, self.detail, "backward" if self.backward else "")
        return "-".join(word for word in words if word).replace(" ", "-").replace(",", "")

    @property
    def type_name(self) -> str:
        """Of the dtype, as in "float32"."""
        return str(self.dtype).removeprefix("torch.")


class Normal:
    """Makes tensors of normal numbers: of one seed, dtype and device. On torch's "meta" they have no numbers."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
        self.dtype, self.device = dtype, device
        self._drawn = torch.promote_types(dtype, torch.float32)
        self._generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        """A tensor of this shape."""
        drawn = torch.randn(shape, generator=self._generator, dtype=self._drawn, device=self.device)
        return (mean + std * drawn).to(self.dtype)


def mapped(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The same arguments, with what the function makes of each tensor, also of those in lists and tuples."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        return type(value)(map(of, value)) if isinstance(value, (list, tuple)) else value

    return {name: of(value) for name, value in inputs.items()}


def tensors(inputs: Inputs) -> list[Tensor]:
    """All that are among the arguments, in their order."""
    found: list[Tensor] = []
    mapped(lambda t: found.append(t) or t, inputs)  # type: ignore[func-returns-value]
    return found


def wanting_gradients(inputs: Inputs) -> Inputs:
    """The same arguments as leaves of a graph; strides stay."""
    return mapped(lambda t: t.detach().requires_grad_(t.is_floating_point()), inputs)


def wide(inputs: Inputs) -> Inputs:
    """The same arguments in float64, for an oracle; leaves stay leaves."""
    return mapped(lambda t: t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t, inputs)


def results(found: Any) -> list[Tensor]:
    """Of a function that gives one or several."""
    return [found] if isinstance(found, Tensor) else list(found)
