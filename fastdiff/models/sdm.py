"""Semantic image synthesis (Wang et al. 2022, SDM): ADM whose middle and way up are led by a map of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.adm import ADMConfig, embed_times, group_norm32
from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.blocks import Upsample, mlp
from fastdiff.models.parts.spade import SpadeResBlock


@dataclass(frozen=True)
class SDMConfig(ADMConfig):
    """The arguments of semantic-diffusion-model's `UNetModel`. num_classes: channels of the map, with the one of
    instance edges; the way down is that of ADM. Raises ValueError without classes and for other than two dims."""

    def __post_init__(self) -> None:
        expect(self.num_classes is not None, "num_classes must be given: the channels of the map of labels")
        expect(self.dims == 2, f"dims must be 2, got {self.dims}: the norms' convolutions have two")

    def parts(self) -> dict[str, Any]:
        assert self.num_classes is not None
        label_channels = self.num_classes

        def spade(in_channels: int, out_channels: int, resample: nn.Module | None = None) -> SpadeResBlock:
            return SpadeResBlock(
                in_channels,
                out_channels,
                4 * self.model_channels,
                label_channels=label_channels,
                adaptive=self.use_scale_shift_norm,
                dropout=self.dropout,
                resample=resample,
            )

        def up(level: int, channels: int) -> nn.Module:
            layer = Upsample(channels, conv=self.conv_resample and not self.resblock_updown)
            return spade(channels, channels, layer) if self.resblock_updown else layer

        return {**super().parts(), "middle": spade, "up_residual": spade, "up": up}


class SDM(Backbone):
    """Noise-prediction network: `model(x, t, y)` -> (B, out_channels, H, W), the second half the variance where
    out_channels is twice in_channels.

    x: (B, in_channels, H, W). t: (B,) training times. y: (B, num_classes, H, W), the map of labels: see `label_map`;
    zeros for the network without a condition, as its guidance has it (Wang et al. 2022, Section 3.3): uncond={"y":
    torch.zeros_like(y)}. Raises ValueError where these do not fit.
    """

    def __init__(self, config: SDMConfig) -> None:
        super().__init__(
            in_channels=config.in_channels, out_channels=config.out_channels, norm=group_norm32, **config.parts()
        )
        self.config = config
        self.time_embedding = mlp(config.model_channels, 4 * config.model_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
        expected = (len(x), self.config.num_classes, *x.shape[2:])
        if y is None or y.shape != expected:
            raise ValueError(f"y must be {expected}, a map at x's size, got {None if y is None else tuple(y.shape)}")
        embedding = self.time_embedding(embed_times(x, t, self.config.model_channels))
        return self.run(x, F.silu(embedding), y.to(x.dtype), **options)


def label_map(labels: Tensor, num_labels: int, instances: Tensor | None = None) -> Tensor:
    """The y of `SDM`: one-hot labels, and a channel that is 1 at the edges of instances (Park et al. 2019, Appendix).

    labels: (B, H, W) whole numbers in 0 .. num_labels - 1. instances: (B, H, W), another number for each; without it
    there is no channel of edges. Returns (B, num_labels or num_labels + 1, H, W) float32. Raises ValueError where the
    labels do not fit.
    """
    whole = labels.ndim == 3 and not labels.is_floating_point()
    expect(
        whole and 0 <= int(labels.min()) <= int(labels.max()) < num_labels,
        f"labels must be (B, H, W) whole numbers in 0 .. {num_labels - 1}, got {labels.dtype} {tuple(labels.shape)}",
    )
    y = F.one_hot(labels.long(), num_labels).movedim(3, 1).float()
    if instances is None:
        return y
    expect(
        instances.shape == labels.shape,
        f"instances must be {tuple(labels.shape)}, as labels, got {tuple(instances.shape)}",
    )
    across, down = instances[:, :, 1:] != instances[:, :, :-1], instances[:, 1:] != instances[:, :-1]
    edges = F.pad(across, (1, 0)) | F.pad(across, (0, 1)) | F.pad(down, (0, 0, 1, 0)) | F.pad(down, (0, 0, 0, 1))
    return torch.cat([y, edges[:, None].float()], dim=1)
