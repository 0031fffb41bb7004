"""Keeping x0 in the range of the data: static and dynamic thresholding (Saharia et al. 2022, Imagen, Section 2.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.arguments import number
from fastdiff.errors import expect
from fastdiff.program.transforms import per_sample, transform


@dataclass(frozen=True)
class Threshold:
    """x0 is limited at every model call, and eps follows from it.

    limit: static: x0 is clipped to [-limit, limit] (`clip_denoised` of DDPM and ADM, with limit 1). percentile:
    dynamic: the limit is that percentile of |x0|, in [0, 1], of each sample, where it is larger, and x0 is scaled back
    to [-limit, limit]. Raises ValueError for a limit that is not positive or a percentile outside (0, 1].
    """

    limit: float = 1.0
    percentile: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", number("threshold limit", self.limit))
        if self.percentile is not None:
            object.__setattr__(self, "percentile", number("threshold percentile", self.percentile))
        expect(self.limit > 0, f"threshold limit must be positive, got {self.limit!r}")
        expect(
            self.percentile is None or 0 < self.percentile <= 1,
            f"threshold percentile must lie in (0, 1], got {self.percentile!r}",
        )

    @property
    def function(self) -> str:
        """The name in `fastdiff.program.transforms.TRANSFORMS`."""
        return "clip" if self.percentile is None else "dynamic_threshold"

    def parameters(self) -> dict[str, float]:
        """What that function takes."""
        dynamic = {} if self.percentile is None else {"percentile": float(self.percentile)}
        return {"limit": float(self.limit), **dynamic}


@transform
def clip(x0: Tensor, *, limit: float) -> Tensor:
    """x0 limited to [-limit, limit]."""
    return x0.clamp(-limit, limit)


@transform
def dynamic_threshold(x0: Tensor, *, limit: float, percentile: float) -> Tensor:
    """x0 limited to [-s, s] and divided by s / limit, s >= limit being the percentile of |x0| of each sample."""
    ordered = x0.flatten(1).abs().sort(1).values  # torch.quantile takes no more than 2^24 values
    position = percentile * (ordered.shape[1] - 1)
    low, high = math.floor(position), math.ceil(position)
    s = torch.lerp(ordered[:, low], ordered[:, high], position - low).clamp(min=limit)
    s = per_sample(s, x0)
    return torch.minimum(torch.maximum(x0, -s), s) * (limit / s)
