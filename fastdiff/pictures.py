"""Samples to PNG files, and pictures to tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.arguments import described, whole
from fastdiff.errors import expect
from fastdiff.files import replacing


def to_uint8(samples: Tensor) -> NDArray[np.uint8]:
    """(B, 3 or 1, H, W) in [-1, 1] -> (B, H, W, 3) in 0..255, values outside clipped."""
    if not isinstance(samples, Tensor):
        raise TypeError(f"pictures must be a tensor (B, 3, H, W) in [-1, 1], got {described(samples)}")
    expect(
        samples.ndim == 4 and samples.shape[1] in (1, 3), f"pictures must be (B, 3, H, W), got {tuple(samples.shape)}"
    )
    pixels = samples.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def grid(samples: Tensor, columns: int, *, margin: int = 2) -> NDArray[np.uint8]:
    """Pictures row by row with a light margin: (B, 3, H, W) in [-1, 1] -> (rows H', columns W', 3) uint8."""
    columns, margin = whole("columns", columns, 1), whole("margin", margin, 0)
    pictures = to_uint8(samples)
    rows = -(-len(pictures) // columns)
    height, width = pictures.shape[1] + margin, pictures.shape[2] + margin
    sheet = np.full((rows * height + margin, columns * width + margin, 3), 238, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height + margin, i % columns * width + margin
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def save_png(path: str | Path, pixels: NDArray[np.uint8], *, zoom: int = 1) -> None:
    """Write (H, W, 3) uint8 as PNG, each pixel as zoom x zoom; whole or not at all."""
    from PIL import Image

    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be that of a file, got {described(path)}; save_png takes the path, then the pixels")
    wrong = f"pixels must be (H, W, 3) uint8, as pictures.grid(samples, columns) gives, got {described(pixels)}"
    if not isinstance(pixels, np.ndarray):
        raise TypeError(wrong)
    expect(pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8 and pixels.size > 0, wrong)
    zoom = whole("zoom", zoom, 1)
    image = Image.fromarray(pixels)
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def load_square(path: str | Path, size: int) -> Tensor:
    """(3, size, size) in [-1, 1]: the middle square of a picture in any format of Pillow's.

    Raises ValueError that names the file if it is no picture, OSError if it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            pixels = np.array(square.resize((size, size), Image.Resampling.LANCZOS))
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a damaged PNG
        raise ValueError(f"cannot read the picture {path}: {error}") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise ValueError(f"cannot read the picture {path}: {error}") from error  # of Pillow: truncated
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
