"""Checkpoints of willisma/SiT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fastdiff.models.checkpoints.dit import DiTLayout
from fastdiff.models.checkpoints.layout import Checkpoint, register
from fastdiff.models.dit import DiTConfig
from fastdiff.models.sit import SiT


@register
class SiTLayout(DiTLayout):
    """The class `SiT` of models.py. Its keys and shapes are those of DiT, so that it must be asked for by name."""

    name = "sit"
    about = "SiT of willisma/SiT"

    def detect(self, checkpoint: Checkpoint) -> bool:
        return False

    def fits(self, checkpoint: Checkpoint) -> bool:
        return super().detect(checkpoint)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return SiT(DiTConfig(**config))
