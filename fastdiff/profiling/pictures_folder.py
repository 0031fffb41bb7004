"""A folder of pictures as the data to compare with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.pictures import load_square
from fastdiff.profiling.subject import Subject

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def load_pictures(folder: Path, subject: Subject) -> Tensor:
    """(N, 3, H, W) in [-1, 1], the middle square of every picture in `folder` at the size of the model's pictures.

    Raises ValueError if there are fewer than 5, or if a file cannot be read, which it names.
    """
    expect(folder.is_dir(), f"data must be a folder of pictures, got {str(folder)!r}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    expect(len(files) >= 5, f"{folder} holds {len(files)} pictures ({', '.join(SUFFIXES)}), expected at least 5")
    size = subject.pictures(torch.zeros(1, *subject.shape, device=subject.device)).shape[-1]
    return torch.stack([load_square(path, size) for path in files])
