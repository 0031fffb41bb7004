"""Learning rates, decays of averages, numbers of levels and clipping as published training loops have them, as
functions of the step."""

from __future__ import annotations

from math import ceil, exp, log, log2, sqrt

from torch import Tensor

from fastdiff.errors import expect, unknown


def ramped(rate: float, done: float, ramp: float) -> float:
    """rate min(done / ramp, 1): linear warm-up over `ramp` images or steps, from 0 at the first one."""
    return rate * min(done / ramp, 1.0) if ramp > 0 else rate


def half_life_decay(images: float, half_life: float, *, done: float = 0.0, ramp: float | None = None) -> float:
    """Decay of an average after a step of `images` images: 0.5^(images / h), h the half-life in images, at most
    done * ramp while training begins (Karras et al. 2022, EDM, training loop). done: images before this step."""
    half_life = half_life if ramp is None else min(half_life, done * ramp)
    return 0.5 ** (images / max(half_life, 1e-8))


def warm_decay(decay: float, updates: int) -> float:
    """min(decay, (1 + k) / (10 + k)) at the k-th update, k = 1, 2, ... (Song et al. 2021, Score SDE)."""
    return min(decay, (1 + updates) / (10 + updates))


def clip_factor(norm: Tensor, limit: float) -> Tensor:
    """What a gradient of this norm is multiplied with: min(1, limit / (norm + 1e-6)); 1 for a negative limit."""
    return (limit / (norm + 1e-6)).clamp(max=1.0) if limit >= 0 else norm.new_ones(())


def ema_and_scales(
    step: int,
    *,
    ema: str = "adaptive",
    scales: str = "progressive",
    start_ema: float = 0.95,
    start: int = 2,
    end: int = 150,
    total: int = 800_000,
    steps_per_stage: int = 50_000,
) -> tuple[float, int]:
    """(decay of the target, number of levels) at a step of training (Song et al. 2023, Section 5).

    ema: "fixed" or "adaptive". scales: "fixed", "progressive" from start to end over `total` steps, or "progdist",
    which halves the levels every `steps_per_stage` steps, then twice as many. Raises ValueError for other names.
    """
    if ema not in ("fixed", "adaptive"):
        raise unknown("ema", ema, ("fixed", "adaptive"))
    if scales not in ("fixed", "progressive", "progdist"):
        raise unknown("scales", scales, ("fixed", "progressive", "progdist"))
    if scales == "fixed":
        expect(ema == "fixed", "with fixed scales the ema must be 'fixed', got 'adaptive'")
        return start_ema, start
    if scales == "progressive":
        count = max(ceil(sqrt(step / total * ((end + 1) ** 2 - start**2) + start**2) - 1), 1)
        return (exp(start * log(start_ema) / count) if ema == "adaptive" else start_ema), count + 1
    count = max(start // 2 ** (step // steps_per_stage), 2)
    if count == 2:
        past = max(step - steps_per_stage * (log2(start) - 1), 0)
        count = max(2 // 2 ** int(past // (2 * steps_per_stage)), 1)
    return 1.0, count


def improved_scales(step: int, *, start: int = 10, end: int = 1280, total: int = 400_000) -> int:
    """Number of levels at a step: doubled at equal intervals (Song & Dhariwal 2023, Section 3.4)."""
    interval = total // (int(log2(end // start)) + 1)
    return min(start * 2 ** (step // interval), end) + 1
