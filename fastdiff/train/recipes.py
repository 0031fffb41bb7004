"""What `fastdiff train NAME` trains: the network and every setting of the run, reproduced by the name and a seed."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.models.unet import UNetConfig


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained.

    schedule, prediction: names in `fastdiff.schedules.SCHEDULES` and of the network's output. size: pixels a side.
    class_dropout: share of samples trained without their class, for classifier-free guidance (Ho & Salimans 2022).
    precision: "bfloat16" (autocast; weights and loss stay float32) or "float32".
    """

    name: str
    network: UNetConfig
    size: int
    steps: int
    batch: int = 64
    schedule: str = "cosine"
    prediction: str = "v"
    learning_rate: float = 8e-4
    warmup: int = 300
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    class_dropout: float = 0.1
    precision: str = "bfloat16"
    seed: int = 0


RECIPES = {
    "emoji-unet-32": Recipe(
        name="emoji-unet-32",
        network=UNetConfig(
            channels=(64, 96, 144), blocks=1, attention_levels=(2,), head_channels=48, num_classes=9, positions=32
        ),
        size=32,
        steps=12_000,
        batch=32,
        learning_rate=6e-4,
    )
}
