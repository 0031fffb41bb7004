"""A folder of pictures as the data of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.pictures import load_square, to_uint8

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_NAMED = 5  # unreadable files in a message


class Pictures(Sequence):
    """The pictures of a folder and its subfolders, as (3, size, size) uint8: the middle square of each, resized.

    All are read at once and kept: 3 size^2 bytes each. by_folder: the subfolders are classes, `labels` (N,) int64 and
    `classes` their names; items are then (picture, label). skipped: files that could not be read. fingerprint: of all
    pictures and labels.

    Raises ValueError that names the files that cannot be read, unless `skip_unreadable`, and for a folder without
    pictures; with by_folder also for pictures that are in no subfolder.
    """

    def __init__(
        self, folder: str | Path, size: int, *, by_folder: bool = False, skip_unreadable: bool = False
    ) -> None:
        folder = Path(folder)
        expect(folder.is_dir(), f"there is no folder of pictures {str(folder)!r}")
        expect(size >= 1, f"size must be at least 1 pixel, got {size}")
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        with ThreadPoolExecutor() as readers:
            read = list(readers.map(lambda path: _read(path, size), files))
        failures = [found for found in read if isinstance(found, str)]
        expect(
            skip_unreadable or not failures,
            f"{len(failures)} of {len(files)} pictures in {folder} cannot be read: {'; '.join(failures[:_NAMED])}"
            f"{'; ...' if len(failures) > _NAMED else ''}. Remove them, or skip them with skip_unreadable",
        )
        self.skipped = [path for path, found in zip(files, read) if isinstance(found, str)]
        kept = [(path, found) for path, found in zip(files, read) if not isinstance(found, str)]
        expect(bool(kept), f"{folder} holds no pictures that can be read, {', '.join(SUFFIXES)}")
        self.images = torch.from_numpy(np.stack([found for _, found in kept])).permute(0, 3, 1, 2).contiguous()
        digest = hashlib.sha256(self.images.numpy().tobytes())
        self.classes: tuple[str, ...] = ()
        self.labels: Tensor | None = None
        if by_folder:
            inside = [path.relative_to(folder).parts for path, _ in kept]
            outside = [path for (path, _), parts in zip(kept, inside) if len(parts) == 1]
            expect(
                not outside, f"classes are subfolders, but {len(outside)} pictures, such as {outside[:1]}, are in none"
            )
            self.classes = tuple(sorted({parts[0] for parts in inside}))
            self.labels = torch.tensor([self.classes.index(parts[0]) for parts in inside])
            digest.update(repr((self.classes, self.labels.tolist())).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        return self.images[i] if self.labels is None else (self.images[i], self.labels[i])


def _read(path: Path, size: int) -> np.ndarray | str:
    """The pixels, or why there are none."""
    try:
        return to_uint8(load_square(path, size)[None])[0]
    except (ValueError, OSError) as error:
        return str(error)
