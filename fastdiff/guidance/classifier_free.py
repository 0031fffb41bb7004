"""Classifier-free guidance: Ho & Salimans 2022, Classifier-Free Diffusion Guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from fastdiff.arguments import described, number, scales, whole
from fastdiff.errors import expect
from fastdiff.process.schedules import Point
from fastdiff.program.transforms import per_sample, transform


@dataclass(frozen=True)
class CFG:
    """out = uncond + scale (cond - uncond); scale = 1 is the conditional model alone.

    scale: Ho & Salimans 2022, Eq. 6, with scale = 1 + w; or one a sample, in a sequence or a tensor, which a Program
    does not hold. interval: (low, high) in lambda = log(alpha / sigma), outside of which the conditional output is used
    alone and the unconditional one is not computed (Kynkaanniemi et al. 2024, Applying Guidance in a Limited Interval);
    for one scale only. rescale: share, in [0, 1], of the output that is brought back to the
    standard deviation of the conditional one (Lin et al. 2024, Common Diffusion Noise Schedules, Eq. 15 and 16).
    every: the unconditional output is computed at every such step only, and the last difference, scale - 1 times
    (cond - uncond), is added to the conditional output at the others (Lv et al. 2024, FasterCache, CFG-Cache, without
    its split by frequency); for one scale only. 1 is at all steps.
    Raises ValueError for a scale that is not finite, an empty interval, another share and every below 1, TypeError for
    what is none.
    """

    scale: float | tuple[float, ...]
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", scales("guidance scale", self.scale))
        if self.interval is not None:
            object.__setattr__(self, "interval", _interval(self.interval))
        object.__setattr__(self, "rescale", number("guidance rescale", self.rescale))
        expect(0 <= self.rescale <= 1, f"guidance rescale must lie in [0, 1], got {self.rescale!r}")
        object.__setattr__(self, "every", whole("guidance every", self.every, 1))

    @property
    def single(self) -> float:
        """The one scale. Raises ValueError where there is one a sample."""
        if isinstance(self.scale, tuple):
            raise ValueError(f"one guidance scale is needed here, got {len(self.scale)}; fastdiff.sample takes several")
        return self.scale

    def active(self, point: Point) -> bool:
        """Whether guidance changes the output at this point."""
        low, high = self.interval or (-math.inf, math.inf)
        return self.scale != 1 and low <= point.lam <= high


def _interval(given: Any) -> tuple[float, float]:
    what = "guidance interval must be (low, high) in lambda"
    if not isinstance(given, (tuple, list)) or not all(isinstance(end, Real) for end in given):
        raise TypeError(f"{what}, got {described(given)}")
    expect(len(given) == 2 and given[0] < given[1], f"{what}, got {given!r}")
    return float(given[0]), float(given[1])


@transform
def rescale_guidance(guided: Tensor, conditional: Tensor, *, share: float) -> Tensor:
    """Eq. 15 and 16 of Lin et al. 2024, the standard deviations over each sample."""
    ratio = conditional.flatten(1).std(1) / guided.flatten(1).std(1)
    return guided * per_sample(share * ratio + (1 - share), guided)
