"""Networks by name, for pictures of a size: what `fastdiff train folder --model` takes."""

from __future__ import annotations

from fastdiff.errors import unknown
from fastdiff.models.unet import UNet, UNetConfig

# Pixels a side, features at each level, levels with attention. unet-32 is that of emoji-unet-32.
_UNETS = {
    "unet-16": (16, (64, 96), (1,)),
    "unet-32-small": (32, (32, 48, 64), (2,)),
    "unet-32": (32, (64, 96, 144), (2,)),
    "unet-64": (64, (64, 96, 144, 192), (2, 3)),
}
NETWORKS = tuple(_UNETS)


def size_of(name: str) -> int:
    """Pixels a side of a network's pictures. Raises ValueError for an unknown name."""
    if name not in _UNETS:
        raise unknown("model to train", name, NETWORKS)
    return _UNETS[name][0]


def make_network(name: str, *, classes: int = 0) -> UNet:
    """A network with fresh weights from torch's generator. Raises ValueError for an unknown name."""
    size = size_of(name)
    _, channels, attention = _UNETS[name]
    return UNet(
        UNetConfig(
            channels=channels, blocks=1, attention_levels=attention, num_classes=classes, positions=size,
            head_channels=48 if channels[-1] % 48 == 0 else 32,
        )
    )  # fmt: skip
