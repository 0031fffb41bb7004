"""Classifier-free guidance: Ho & Salimans 2022, Classifier-Free Diffusion Guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from fastdiff.errors import expect
from fastdiff.process.schedules import Point
from fastdiff.program.transforms import per_sample, transform


@dataclass(frozen=True)
class CFG:
    """out = uncond + scale (cond - uncond); scale = 1 is the conditional model alone.

    scale: Ho & Salimans 2022, Eq. 6, with scale = 1 + w. interval: (low, high) in lambda = log(alpha / sigma), outside
    of which the conditional output is used alone and the unconditional one is not computed (Kynkaanniemi et al. 2024,
    Applying Guidance in a Limited Interval). rescale: share, in [0, 1], of the output that is brought back to the
    standard deviation of the conditional one (Lin et al. 2024, Common Diffusion Noise Schedules, Eq. 15 and 16).
    Raises ValueError for a scale that is not finite, an empty interval or another share.
    """

    scale: float
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        expect(
            isinstance(self.scale, Real) and math.isfinite(self.scale),
            f"guidance scale must be a finite number, got {self.scale!r}",
        )
        if self.interval is not None:
            low, high = self.interval
            expect(low < high, f"guidance interval must be (low, high) in lambda, got {self.interval!r}")
        expect(0 <= self.rescale <= 1, f"guidance rescale must lie in [0, 1], got {self.rescale!r}")

    def active(self, point: Point) -> bool:
        """Whether guidance changes the output at this point."""
        low, high = self.interval or (-math.inf, math.inf)
        return self.scale != 1 and low <= point.lam <= high


@transform
def rescale_guidance(guided: Tensor, conditional: Tensor, *, share: float) -> Tensor:
    """Eq. 15 and 16 of Lin et al. 2024, the standard deviations over each sample."""
    ratio = conditional.flatten(1).std(1) / guided.flatten(1).std(1)
    return guided * per_sample(share * ratio + (1 - share), guided)
