"""How far a result is from the one that is expected, and how far it may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the output's RMS, in float32; other dtypes may differ as many units in their last place.
BOUND = 1e-4 / torch.finfo(torch.float32).eps
HALVES = (torch.float16, torch.bfloat16)
HALF_RMS, HALF_MAXIMUM = 1.25, 2.0  # times the original's own error in the same type


@dataclass(frozen=True)
class Difference:
    """Of two tensors, in units of the RMS of the expected one. bound: of maximum; rms_bound: of rms."""

    name: str
    maximum: float
    rms: float
    bound: float
    rms_bound: float = float("inf")

    @property
    def within(self) -> bool:
        """Whether it is within its bounds; NaN is not."""
        return self.maximum <= self.bound and self.rms <= self.rms_bound

    def __str__(self) -> str:
        rms = f"RMS {self.rms:.1e}"
        if self.rms_bound != float("inf"):
            rms += f" {'<=' if self.rms <= self.rms_bound else '> '} {self.rms_bound:.1e}"
        sign = "<=" if self.maximum <= self.bound else "> "
        return f"{self.name}: max {self.maximum:.1e} {sign} {self.bound:.1e}, {rms}"


def difference(name: str, ours: Tensor, theirs: Tensor, exact: Tensor | None) -> Difference:
    """Of a fast result. theirs: the original's; exact: the same in a wider type, if it is known.

    In float32 and float64 the largest difference may be 1e-4 of the RMS (as many roundings in float64), or twice what
    the original is off by. In float16 and bfloat16, where rounding alone is more than that, the error against the wider
    type is compared with the original's: its RMS may be 1.25 times as large, its maximum, which is one number and
    varies more, twice, each plus one rounding of the result.
    """
    if not theirs.is_floating_point() or not theirs.numel():
        differ = float(ours.shape != theirs.shape or bool((ours != theirs).any()))
        return Difference(name, differ, differ, 0.0)
    expected = theirs.double() if exact is None else exact.double()
    if ours.shape != expected.shape:
        return Difference(name, float("inf"), float("inf"), 0.0)
    eps, unit = torch.finfo(theirs.dtype).eps, float(expected.square().mean().sqrt()) or 1.0
    maximum, rms = _error(ours, expected, unit)
    if exact is None:
        return Difference(name, maximum, rms, BOUND * eps)
    their_maximum, their_rms = _error(theirs, expected, unit)
    if theirs.dtype in HALVES:
        rounding = eps * float(expected.abs().max()) / unit
        return Difference(name, maximum, rms, HALF_MAXIMUM * their_maximum + rounding, HALF_RMS * their_rms + eps / 2)
    return Difference(name, maximum, rms, max(BOUND * eps, 2 * their_maximum))


def low_difference(name: str, ours: Tensor, theirs: Tensor, expected: Tensor, times: float) -> Difference:
    """Of a result in lower precision. theirs: the original's under autocast to bfloat16; expected: in float32; times:
    the error of the first may be so many times what bfloat16 may be off by."""
    if not expected.is_floating_point() or not expected.numel() or ours.shape != expected.shape:
        return difference(name, ours, expected, None)
    eps, unit = torch.finfo(torch.bfloat16).eps, float(expected.double().square().mean().sqrt()) or 1.0
    maximum, rms = _error(ours, expected.double(), unit)
    their_maximum, their_rms = _error(theirs, expected.double(), unit)
    rounding = eps * float(expected.abs().max()) / unit
    bound, rms_bound = HALF_MAXIMUM * their_maximum + rounding, HALF_RMS * their_rms + eps / 2
    return Difference(name, maximum, rms, times * bound, times * rms_bound)


def node_difference(name: str, ours: Tensor, theirs: Tensor, exact: Tensor | None) -> Difference:
    """Of a node of a graph: as of a result, but in half precision twice the original's error is allowed throughout."""
    found = difference(name, ours, theirs, exact)
    return Difference(found.name, found.maximum, found.rms, found.bound)


def _error(found: Tensor, expected: Tensor, unit: float) -> tuple[float, float]:
    apart = (found.double() - expected).abs()
    return float(apart.max()) / unit, float(apart.square().mean().sqrt()) / unit
