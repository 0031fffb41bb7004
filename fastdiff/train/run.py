"""How a network is trained, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.errors import expect, unknown

PRECISIONS = ("bfloat16", "float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of a run.

    batch: samples of a batch. accumulate: batches of a step, whose gradients are averaged: one after the other, or
    shared among the processes of torchrun, whose number must divide it; the result depends on their number by rounding
    only. learning_rate, weight_decay: of AdamW; the rate rises for `warmup` steps, then falls as a cosine to 0.
    clip_norm: largest norm of the gradient. ema_decay: of the averaged weights, which are the result; more_ema_decays:
    of further averages. precision: "bfloat16" or "float16" (autocast; weights and loss stay float32, and gradients of
    float16 are scaled), or "float32". checkpoint_every, validate_every: steps. Raises ValueError for what cannot be.
    """

    name: str
    steps: int
    batch: int = 64
    accumulate: int = 1
    learning_rate: float = 8e-4
    warmup: int = 300
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    more_ema_decays: tuple[float, ...] = ()
    precision: str = "bfloat16"
    seed: int = 0
    checkpoint_every: int = 100
    validate_every: int = 500

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        for field in ("steps", "batch", "accumulate", "checkpoint_every", "validate_every"):
            expect(getattr(self, field) >= 1, f"{field} must be at least 1, got {getattr(self, field)!r}")
        for field in ("learning_rate", "clip_norm"):
            expect(getattr(self, field) > 0, f"{field} must be positive, got {getattr(self, field)!r}")
        for field in ("warmup", "weight_decay", "seed"):
            expect(getattr(self, field) >= 0, f"{field} must not be negative, got {getattr(self, field)!r}")
        for decay in self.decays:
            expect(0 <= decay < 1, f"a decay of averaged weights must lie in [0, 1), got {decay!r}")
        expect(len(set(self.decays)) == len(self.decays), f"the decays of averages must differ, got {self.decays}")

    @property
    def decays(self) -> tuple[float, ...]:
        """Of all averages."""
        return (self.ema_decay, *self.more_ema_decays)
