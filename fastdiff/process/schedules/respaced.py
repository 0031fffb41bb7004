"""Some steps of a discrete process as a process of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastdiff.errors import expect
from fastdiff.process.schedules.vp import VPDiscrete


class Respaced(VPDiscrete):
    """The steps `kept` of a discrete process, with the betas that lead from one to the next (Nichol & Dhariwal 2021,
    Improved DDPM, Section 4).

    kept: numbers n of the original's steps, increasing. time_scale: the network receives time_scale n of the original.
    Raises ValueError for steps that do not increase or are not there.
    """

    def __init__(self, original: VPDiscrete, kept: Sequence[int], *, time_scale: float = 1.0) -> None:
        numbers = np.asarray(kept, dtype=np.int64)
        inside = numbers.ndim == 1 and numbers.size > 0 and numbers[0] >= 0 and numbers[-1] < original.num_steps
        expect(
            bool(inside and (np.diff(numbers) > 0).all()),
            f"kept must be increasing steps of 0 .. {original.num_steps - 1}, got {list(kept)!r}",
        )
        steps = np.arange(original.num_steps)
        if numbers.size == steps.size:
            betas = original.betas
        else:
            log_bar = 2 * original.log_alpha((numbers + 1) / original.num_steps)
            betas = -np.expm1(np.diff(log_bar, prepend=0.0))
        super().__init__(betas, name=f"{original.name}-respaced")
        self.kept, self.time_scale = numbers, time_scale

    @classmethod
    def sections(cls, original: VPDiscrete, spacing: str, *, time_scale: float = 1.0) -> Respaced:
        """Steps as guided-diffusion's `timestep_respacing` spells them: "10,15,20" evenly spaced ones in sections of
        equal length, "ddim25" every so many, "" all of them. Raises ValueError for what cannot be had."""
        return cls(original, respaced_steps(spacing, original.num_steps), time_scale=time_scale)

    def model_time(self, t: float) -> float:
        numbers = np.arange(self.num_steps)
        return self.time_scale * float(np.interp(super().model_time(t), numbers, self.kept.astype(np.float64)))


def respaced_steps(spacing: str, total: int) -> list[int]:
    """The steps of 0 .. total - 1 that "10,15,20", "50", "ddim25" or "" keep, increasing. Raises ValueError."""
    if not spacing:
        return list(range(total))
    if spacing.startswith("ddim"):
        count = int(spacing.removeprefix("ddim"))
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == count:
                return list(range(0, total, stride))
        raise ValueError(f"no stride takes {count} of {total} steps")
    counts = [int(count) for count in spacing.split(",")]
    steps: list[int] = []
    first = 0
    for number, count in enumerate(counts):
        size = total // len(counts) + (number < total % len(counts))
        expect(1 <= count <= size, f"a section of {size} steps has no {count}")
        apart = (size - 1) / (count - 1) if count > 1 else 1.0
        steps += [first + round(apart * j) for j in range(count)]
        first += size
    return steps
