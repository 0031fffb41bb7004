"""What distances between sets of pictures are measured on: a small network's features, or a user's own.

`EmojiFeatures` belongs to the bundled models: trained on the same emoji to tell the groups apart and to draw the
picture again from its 64 features (`python -m fastdiff.profiling.train_features`), with the features of the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdiff.errors import WeightsError, expect, unknown
from fastdiff.profiling.entry_points import entry_point

Float64Array = NDArray[np.float64]
WIDTHS = (32, 64, 96, 128)
FEATURES = 64
SIZE = 32
DRAWN = 16  # pixels a side of what the features must be able to draw


class EmojiFeatures(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, 64) features with mean 0 and variance 1 over the data.

    Pictures of another size are brought to 32 pixels a side. `logits` and `drawing` are what it was trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for level, width in enumerate(WIDTHS):
            for index in range(1 if level == 0 else 2):
                stride = 2 if level and index == 0 else 1
                layers += [nn.Conv2d(before, width, 3, stride, 1), nn.GroupNorm(8, width), nn.SiLU()]
                before = width
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * (SIZE >> 3) ** 2, FEATURES))
        self.logits = nn.Linear(FEATURES, classes)
        self.drawing = nn.Linear(FEATURES, 3 * DRAWN**2)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))

    def raw(self, x: Tensor) -> Tensor:
        """The features before they are brought to mean 0 and variance 1."""
        if x.shape[-2:] != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.layers(x.clamp(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.raw(x) - self.mean) / self.std


@dataclass(frozen=True)
class Extractor:
    """A named feature extractor. function: (B, C, H, W) in [-1, 1] -> (B, D). A module gets the pictures on the device
    of its parameters, any other function on the CPU.

    data: (N, D) features of the data that the model was trained on, None where there are none: then sets are compared
    with the converged samples. class_shares: of the classes in the data.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    data: Float64Array | None = None
    class_shares: tuple[float, ...] | None = None

    def __call__(self, pictures: Tensor, batch: int = 256) -> Float64Array:
        """Features in float64. Raises ValueError if the function returns anything but one row a picture."""
        network = self.function if isinstance(self.function, nn.Module) else None
        where = next((p.device for p in network.parameters()), None) if network else None
        with torch.no_grad():
            found = [self.function(part.to(where or "cpu", torch.float32)) for part in pictures.split(batch)]
        features = torch.cat(found).flatten(1).double().cpu().numpy()
        expect(
            len(features) == len(pictures),
            f"feature extractor {self.name!r} returned {len(features)} rows for {len(pictures)} pictures",
        )
        return features


EXTRACTORS = ("emoji", "inception", "pixels")


def get_extractor(
    name: str | Extractor | Callable[[Tensor], Tensor], *, device: torch.device | str = "cpu"
) -> Extractor:
    """ "emoji" (bundled), "inception" (torchvision's, with its weights), "pixels" (16 x 16 means), an entry point
    `module:function` or `file.py:function`, or a function. device: of the two networks. Raises ValueError for
    an unknown name, ImportError for what is not installed."""
    if isinstance(name, Extractor):
        return name
    if callable(name):
        return Extractor(getattr(name, "__name__", type(name).__name__), name)
    if name == "emoji":
        return emoji_extractor(device=device)
    if name == "inception":
        return _inception(device)
    if name == "pixels":
        return Extractor("pixels", lambda x: F.adaptive_avg_pool2d(x, min(16, *x.shape[-2:])).flatten(1))
    if ":" in name:
        found = entry_point(name, "feature extractor")
        expect(callable(found), f"feature extractor {name!r} must be a function, got a {type(found).__name__}")
        return Extractor(name, found)
    raise unknown("feature extractor", name, (*EXTRACTORS, "module:function", "file.py:function"))


def weights_path() -> Path:
    """Where the bundled extractor is."""
    return Path(str(resources.files("fastdiff.profiling"))) / "emoji-features.safetensors"


def emoji_extractor(path: Path | None = None, *, device: torch.device | str = "cpu") -> Extractor:
    """The bundled extractor with the features of the data. Raises WeightsError if the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = path or weights_path()
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise WeightsError(f"cannot read the feature extractor {path}: {error}") from error
    data = state.pop("data")
    network = EmojiFeatures(len(about["classes"]))
    network.load_state_dict(state)
    network.eval().requires_grad_(False).to(device)
    return Extractor("emoji-features", network, data.double().numpy(), tuple(about["class_shares"]))


class Inception(nn.Module):
    """torchvision's network without its last layer, of pictures (B, 3, H, W) in [-1, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, (299, 299), mode="bilinear", antialias=True)
        return self.network(((x + 1) / 2 - self.mean) / self.std)  # type: ignore[no-any-return]


def _inception(device: torch.device | str) -> Extractor:
    try:
        from torchvision.models import Inception_V3_Weights, inception_v3
    except ImportError as error:
        raise ImportError('features "inception" need torchvision: pip install torchvision') from error
    network = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1)
    network.fc = nn.Identity()
    return Extractor("torchvision-inception-v3", Inception(network).eval().requires_grad_(False).to(device))
