"""What the commands of `fastdiff edit` read and write: the picture, the mask, the results and the strip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import fastdiff
from fastdiff import arguments, pictures
from fastdiff.cli import picture_model
from fastdiff.cli.console import console, print_json
from fastdiff.cli.picture_model import PictureModel
from fastdiff.errors import expect, unknown
from fastdiff.files import working_folder

NOTHING = ", so that nothing would change"


@dataclass(frozen=True)
class Asked:
    """Which model a command shall use, and on what condition."""

    model: str
    class_name: str | None
    prompt: str | None
    guidance: float | None
    seed: int
    device: str | None
    dtype: str

    def opened(self, count: int = 1) -> PictureModel:
        """The model, with the same condition for `count` samples. Raises ValueError for what it does not take."""
        where, kind = self._place()
        if picture_model.is_subject(self.model):
            words = picture_model.words_of(self.model, self.class_name, self.prompt)
            return picture_model.of_subject(self.model, words, self.guidance, where, kind)
        loaded = fastdiff.load(self.model, device=where or "cpu", dtype=kind)
        name = picture_model.condition_of(loaded.info, self.class_name, self.prompt)
        return picture_model.of_bundled(loaded, [name] * count, self.guidance)

    def opened_for_two(self, source: str | None, *, same: bool = False) -> PictureModel:
        """The model, whose sample 0 is conditioned on the source and sample 1 on the class or prompt; same: they may
        be the same, and the prompt is the source if there is none."""
        where, kind = self._place()
        if picture_model.is_subject(self.model):
            named = picture_model.words_of(self.model, self.class_name, self.prompt)
            expect(named is not None or same, "--prompt is needed: what the picture shall become")
            words = (source or "", (named[0] if named else source) or "")
            expect(same or words[0] != words[1], f"--source and --prompt are both {source!r}{NOTHING}")
            return picture_model.of_subject(self.model, words, self.guidance, where, kind)
        loaded = fastdiff.load(self.model, device=where or "cpu", dtype=kind)
        name = picture_model.condition_of(loaded.info, self.class_name, self.prompt)
        option = "--class" if loaded.info.classes else "--prompt"
        name = source if name is None and same else name
        expect(name is not None, f"{option} is needed: what the picture shall become")
        expect(same or name != source, f"--source and {option} are both {name!r}{NOTHING}")
        return picture_model.of_bundled(loaded, [source, name], self.guidance)

    def _place(self) -> tuple[torch.device | None, torch.dtype]:
        where = None if self.device is None else arguments.device("--device", self.device)
        return where, arguments.dtype("--dtype", self.dtype)

    def facts(self, model: PictureModel) -> dict[str, Any]:
        """Of the model, for --json."""
        return {
            "model": self.model, "class": self.class_name, "prompt": self.prompt, "guidance": model.scale,
            "seed": self.seed, "device": str(model.device), "dtype": self.dtype,
        }  # fmt: skip


class Picture(NamedTuple):
    """A file that was read. values: (1, 3, height, width) in [-1, 1]. note: how it was made to fit, "" if it did."""

    path: str
    pixels: NDArray[np.uint8]
    values: Tensor
    note: str


@dataclass(frozen=True)
class Outputs:
    """Where results and strip go. Raises ValueError for names that cannot be, and files that are there already."""

    out: str
    strip: str | None
    zoom: int
    overwrite: bool
    as_json: bool
    count: int = 1

    def __post_init__(self) -> None:
        for option, path in (("--out", Path(self.out)), ("--strip", self.strip_path)):
            expect(path.suffix.lower() == ".png", f"{option} must end in .png, got {str(path)!r}")
        paths = [*self.results, self.strip_path]
        expect(len(set(paths)) == len(paths), f"--out and --strip are the same file, {self.strip_path}")
        for path in paths:
            expect(not path.is_dir(), f"{path} is a folder, expected a file")
            expect(self.overwrite or not path.exists(), f"{path} is there already; --overwrite replaces it")

    @property
    def results(self) -> list[Path]:
        """One file a result."""
        out = Path(self.out)
        if self.count == 1:
            return [out]
        return [out.with_name(f"{out.stem}-{k}{out.suffix}") for k in range(1, self.count + 1)]

    @property
    def strip_path(self) -> Path:
        """The file of the strip."""
        out = Path(self.out)
        return out.with_name(f"{out.stem}-strip{out.suffix}") if self.strip is None else Path(self.strip)

    @contextmanager
    def folders(self, *pictures: Picture) -> Iterator[None]:
        """Folders that can be written to; new ones are removed again after an error or Ctrl-C. What became of the
        pictures is said here, as all is checked now."""
        with ExitStack() as stack:
            for folder in dict.fromkeys(path.parent for path in (Path(self.out), self.strip_path)):
                stack.enter_context(working_folder(folder))
            for picture in pictures:
                if picture.note:
                    console.print(picture.note, markup=False, soft_wrap=True)
            yield

    def save(self, before: Tensor, mask: Tensor | None, after: Tensor, facts: dict[str, Any]) -> None:
        """All files or none, and what they are. before: (1, 3, H, W). mask: boolean, broadcast to it, True where the
        picture is kept, which is white in the strip. after: (count, 3 or 1, H, W)."""
        size = (3, *after.shape[2:])
        parts = [before, *([] if mask is None else [2.0 * mask.float() - 1]), after]
        shown = torch.cat([part.to("cpu", torch.float32).expand(-1, *size) for part in parts])
        strip = pictures.grid(shown, len(shown)).repeat(self.zoom, 0).repeat(self.zoom, 1)
        pictures.save_pngs({**dict(zip(self.results, pictures.to_uint8(after))), self.strip_path: strip})
        names = ", ".join(f"[bold]{path}[/bold]" for path in self.results)
        what = "before and after" if mask is None else "before, mask and after"
        console.print(f"{names}; {what} in [bold]{self.strip_path}[/bold]", soft_wrap=True)
        if self.as_json:
            print_json({"files": list(map(str, self.results)), "strip": str(self.strip_path), **facts})


def read(path: str, size: Sequence[int]) -> Picture:
    """The middle of a picture, (height, width) pixels."""
    pixels, (height, width), note = pictures.load_pixels(path), size, ""
    rows, columns = pixels.shape[:2]
    if (rows, columns) != (height, width):
        left, top, right, bottom = pictures.middle_box(rows, columns, height, width)
        whole = (bottom - top, right - left) == (rows, columns)
        part = " are" if whole else f", of which the middle {right - left} x {bottom - top} are"
        note = f"{path}: {columns} x {rows} pixels{part} resized to {width} x {height}"
    return Picture(path, pixels, pictures.middle(pixels, height, width)[None], note)


def read_mask(path: str, hole: str, picture: Picture, size: Sequence[int]) -> Tensor:
    """(1, 1, height, width) boolean, True where the picture is kept: where no pixel of the mask's file is in the hole.

    Raises ValueError for a mask of another size than the picture's, and one without a hole in the part that is taken.
    """
    if hole not in ("black", "white"):
        raise unknown("--hole", hole, ("black", "white"))
    mask, (height, width) = pictures.load_pixels(path), size
    own, wanted = (mask.shape[0], mask.shape[1]), picture.pixels.shape[:2]
    expect(
        own == wanted,
        f"{path} has {own[1]} x {own[0]} pixels and {picture.path} {wanted[1]} x {wanted[0]}: they must be of one size",
    )
    bright = mask.mean(2) >= 128
    left, top, right, bottom = pictures.middle_box(*own, height, width)
    in_hole = torch.from_numpy((~bright if hole == "black" else bright)[top:bottom, left:right])
    kept = _kept(in_hole[None, None], size)
    taken = "" if tuple(in_hole.shape) == own else f" in the {right - left} x {bottom - top} pixels that are taken"
    expect(not bool(kept.all()), f"{path} has no hole: nothing{taken} is {hole}; --hole names its colour")
    return kept


def shrunk(kept: Tensor, model: PictureModel) -> Tensor:
    """A mask of pictures as one of samples, (1, 1, h, w) boolean: True where all of a sample's pixel is kept."""
    return _kept(~kept, model.shape[1:]).to(model.device)


def _kept(hole: Tensor, size: Sequence[int]) -> Tensor:
    """Where a pixel of the new size touches no pixel of the hole, both boolean."""
    height, width = size
    return F.adaptive_max_pool2d(hole.float(), (height, width)) == 0
