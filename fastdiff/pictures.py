"""Samples to PNG files, and pictures to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
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
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be that of a file, got {described(path)}; save_png takes the path, then the pixels")
    save_pngs({path: pixels}, zoom=zoom)


def save_pngs(files: Mapping[str | Path, NDArray[np.uint8]], *, zoom: int = 1) -> None:
    """Several files as `save_png` writes one; where one cannot be written, none is."""
    from PIL import Image

    zoom = whole("zoom", zoom, 1)
    with ExitStack() as written:
        for path, pixels in files.items():
            wrong = f"pixels must be (H, W, 3) uint8, as pictures.grid(samples, columns) gives, got {described(pixels)}"
            if not isinstance(pixels, np.ndarray):
                raise TypeError(wrong)
            expect(pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8 and pixels.size > 0, wrong)
            image = Image.fromarray(pixels)
            image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
            image.save(written.enter_context(replacing(path)), format="PNG")


def load_square(path: str | Path, size: int) -> Tensor:
    """(3, size, size) in [-1, 1]: the middle square of a picture, as `load_pixels` reads it.

    Raises ValueError that names the file if it is no picture, OSError if it cannot be read.
    """
    return middle(load_pixels(path), size, size)


def load_lines(path: str | Path, size: int) -> Tensor:
    """(1, size, size), 1 where a picture of white lines on black is brighter than the middle grey, and 0 elsewhere.

    Raises ValueError that names the file if it is no picture, of another size (thin lines would not survive), or mostly
    white; OSError if it cannot be read.
    """
    from PIL import Image

    image = Image.fromarray(load_pixels(path)).convert("L")
    expect(
        image.size == (size, size), f"{path} has {image.width}x{image.height} pixels, expected lines on {size}x{size}"
    )
    lines = torch.from_numpy(np.array(image))[None] > 127
    expect(
        2 * int(lines.sum()) <= lines.numel(),
        f"{path} is mostly white, expected white lines on black, as fastdiff.models.edges.canny makes them",
    )
    return lines.float()


def load_pixels(path: str | Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: a picture in any format of Pillow's, upright as its EXIF data say, on white where it is
    transparent.

    Raises ValueError that names the file if it is no picture, OSError if it cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                upright = Image.fromarray((np.asarray(upright, np.float64) / 257).clip(0, 255).round().astype(np.uint8))
            if "A" in upright.getbands() or "transparency" in upright.info:
                layer = upright.convert("RGBA")
                upright = Image.new("RGBA", layer.size, "white")
                upright.alpha_composite(layer)
            return np.array(upright.convert("RGB"))
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a damaged PNG
        raise ValueError(f"cannot read the picture {path}: {error}") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise ValueError(f"cannot read the picture {path}: {error}") from error  # of Pillow: truncated


def middle(pixels: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """(3, height, width) in [-1, 1]: the largest middle part of (H, W, 3) uint8 that has this shape, resized to it."""
    from PIL import Image

    rows, columns = pixels.shape[:2]
    box = middle_box(rows, columns, height, width)
    resized = Image.fromarray(pixels).crop(box).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1


def middle_box(rows: int, columns: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest middle part of (rows, columns) with the shape of (height, width)."""
    tall, wide = min(rows, columns * height // width), min(columns, rows * width // height)
    tall, wide = max(tall, 1), max(wide, 1)
    left, top = (columns - wide) // 2, (rows - tall) // 2
    return left, top, left + wide, top + tall
