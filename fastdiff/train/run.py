"""How a network is trained, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.errors import expect


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of a run.

    steps, batch, learning_rate, weight_decay: of AdamW; the rate rises for `warmup` steps, then falls as a cosine to 0.
    clip_norm: largest norm of the gradient. ema_decay: of the averaged weights. precision: "bfloat16" (autocast;
    weights and loss stay float32) or "float32". Raises ValueError for another precision.
    """

    name: str
    steps: int
    batch: int = 64
    learning_rate: float = 8e-4
    warmup: int = 300
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    precision: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        expect(
            self.precision in ("bfloat16", "float32"), f"precision must be bfloat16 or float32, got {self.precision!r}"
        )
