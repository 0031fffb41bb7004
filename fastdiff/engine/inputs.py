"""What a run reads besides its Program, its model and its initial state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdiff.process.noise import CounterNoise, NoiseFunction


@dataclass(frozen=True)
class Inputs:
    """The noise, the conditions and the gradients of one run.

    counter: noise that is computed from seeds. draw: noise that is given instead, by the number of the draw. cond,
    uncond: keyword arguments of the model, and the same for the unconditional half of a guided call. gradients:
    functions (x, t) -> (B, ...) by the name that a `Call` has as its network, such as "classifier". given: how many
    draws there are, where that is known. tensors: constants that a Program reads, such as a mask, by name, of the
    state's shape.
    """

    counter: CounterNoise
    draw: NoiseFunction | None = None
    cond: Mapping[str, Any] = field(default_factory=dict)
    uncond: Mapping[str, Any] = field(default_factory=dict)
    gradients: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    given: int | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def noise(self, number: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw `number` of the run, (B, ...)."""
        if self.draw is not None:
            return self.draw(number)
        return self.counter.draw(number, shape, dtype).to(device, non_blocking=True)
