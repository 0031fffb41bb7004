"""From the samples of a unit to files: NumPy archives, PNG pictures, WebDataset tars. Equal samples, equal bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fastdiff.errors import one_of
from fastdiff.pictures import to_uint8


@dataclass(frozen=True)
class Made:
    """The samples first to last of a unit. samples: (N, ...) float32, as the model makes them. pictures: (N, 3 or 1, H,
    W) in [-1, 1], made when asked for. about: what a WebDataset says of each sample, JSON."""

    first: int
    samples: Tensor
    pictures: Callable[[], Tensor]
    about: Sequence[dict[str, Any]]

    @property
    def last(self) -> int:
        """Number of the last sample."""
        return self.first + len(self.samples) - 1


def unit_name(first: int, last: int) -> str:
    """Of a unit's files."""
    return f"{first:09d}-{last:09d}"


def npz(made: Made) -> dict[str, bytes]:
    """`samples` (N, ...) float32, latents where the model makes latents, and `first`."""
    return {
        f"samples/{unit_name(made.first, made.last)}.npz": arrays(
            samples=made.samples.cpu().numpy(), first=np.array(made.first)
        )
    }


def png(made: Made) -> dict[str, bytes]:
    """A folder of pictures for each unit, samples/FIRST-LAST/NUMBER.png."""
    folder = f"samples/{unit_name(made.first, made.last)}"
    return {f"{folder}/{number:09d}.png": content for number, content in _pngs(made)}


def webdataset(made: Made) -> dict[str, bytes]:
    """A tar for each unit, with NUMBER.png and NUMBER.json of every sample."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for (number, content), about in zip(_pngs(made), made.about):
            text = json.dumps(about, sort_keys=True).encode()
            for suffix, data in (("json", text), ("png", content)):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")  # without a date or an owner
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {f"samples/{unit_name(made.first, made.last)}.tar": file.getvalue()}


def none(made: Made) -> dict[str, bytes]:
    """No samples, for statistics alone."""
    return {}


FORMATS: dict[str, Callable[[Made], dict[str, bytes]]] = {
    "npz": npz, "png": png, "webdataset": webdataset, "none": none,
}  # fmt: skip


def get_format(name: str) -> Callable[[Made], dict[str, bytes]]:
    """Raises ValueError for an unknown name."""
    one_of("format", name, FORMATS)
    return FORMATS[name]


def arrays(**named: Any) -> bytes:
    """A NumPy archive, not compressed; equal arrays give equal bytes."""
    file = io.BytesIO()
    np.savez(file, **named)
    return file.getvalue()


def read_arrays(content: bytes) -> dict[str, Any]:
    """What `arrays` wrote."""
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {key: found[key] for key in found.files}


def _pngs(made: Made) -> list[tuple[int, bytes]]:
    from PIL import Image

    found = []
    for number, pixels in enumerate(to_uint8(made.pictures()), made.first):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        found.append((number, file.getvalue()))
    return found
