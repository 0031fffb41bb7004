"""A folder of pictures as the data to compare with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.profiling.subject import Subject

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def load_pictures(folder: Path, subject: Subject) -> Tensor:
    """(N, 3, H, W) in [-1, 1], the middle square of every picture in `folder` at the size of the model's pictures.

    Raises ValueError if there are fewer than 5, or if a file cannot be read, which it names.
    """
    from PIL import Image, UnidentifiedImageError

    expect(folder.is_dir(), f"data must be a folder of pictures, got {str(folder)!r}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    expect(len(files) >= 5, f"{folder} holds {len(files)} pictures ({', '.join(SUFFIXES)}), expected at least 5")
    size = subject.pictures(torch.zeros(1, *subject.shape, device=subject.device)).shape[-1]
    found = []
    for path in files:
        try:
            with Image.open(path) as image:
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                square = image.convert("RGB").crop((left, top, left + side, top + side))
                found.append(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)))
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"cannot read the picture {path}: {error}") from error
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 127.5 - 1
