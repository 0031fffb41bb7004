"""What is added inside a U-Net, as ControlNet does: its form, scales and sums (Zhang et al. 2023, Section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastdiff.errors import expect


class Control(NamedTuple):
    """What is added to a U-Net's skip connections and to its middle.

    skips: one for each skip connection, in the order of the way down: the first convolution's result, then each
    stage's; None for nothing. middle: to the middle's result; None for nothing. Each in the shape of what it is added
    to, or (B, C, 1, 1); the way down itself does not see them.
    """

    skips: Sequence[Tensor] | None
    middle: Tensor | None = None

    def scaled(self, scale: float | Sequence[float]) -> Control:
        """Each times `scale`: one number, or one each, the middle's last. Raises ValueError for another number."""
        skips = self.skips or ()
        parts = len(skips) + (self.middle is not None)
        factors = [float(scale)] * parts if isinstance(scale, (int, float)) else [float(factor) for factor in scale]
        expect(len(factors) == parts, f"scale must be one number or {parts}, one for each residual, got {len(factors)}")
        scaled = [skip * factor for skip, factor in zip(skips, factors)]
        middle = None if self.middle is None else self.middle * factors[-1]
        return Control(None if self.skips is None else scaled, middle)

    def only_middle(self) -> Control:
        """Without what is added to the skips."""
        return Control(None, self.middle)


def guess_scales(count: int) -> tuple[float, ...]:
    """The factors of `count` residuals in guess mode, where the prompt says nothing: from 0.1 for the first to 1 for
    the middle's, in equal ratios (diffusers' ControlNetModel; cldm has 0.825 for the ratio of 13)."""
    return tuple(10 ** (index / (count - 1) - 1) for index in range(count)) if count > 1 else (1.0,) * count


def summed(controls: Sequence[Control]) -> Control:
    """The sum of several (Zhang et al. 2023, Section 3.4, "Composing multiple ControlNets"). Raises ValueError if they
    are not for the same network."""
    skips, middle = None, None
    for control in controls:
        if control.skips is not None:
            expect(
                skips is None or len(skips) == len(control.skips),
                f"the controls have {0 if skips is None else len(skips)} and {len(control.skips)} skips; they must be "
                "for the same network",
            )
            skips = list(control.skips) if skips is None else [a + b for a, b in zip(skips, control.skips)]
        if control.middle is not None:
            middle = control.middle if middle is None else middle + control.middle
    return Control(skips, middle)
