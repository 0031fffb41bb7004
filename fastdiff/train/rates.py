"""Learning rates, decays of averages and clipping as published training loops have them, as functions of the step."""

from __future__ import annotations

from torch import Tensor


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
