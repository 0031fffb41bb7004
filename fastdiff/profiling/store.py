"""The folder of a sweep: a file for every finished unit of work, whole or not at all, so that any kill is safe."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.files import remove_parts, replacing, writable_folder

PLAN = "plan.json"
MISSING = {"device": "cpu"}  # of plans from before there was another


@dataclass
class Unit:
    """One round of one setting: samples `first` on. Arrays are a row a sample; those of the reference are empty where
    there is none. others: cores that others used meanwhile, None if unknown; again: how often the time was taken again.
    error: why there is nothing else."""

    first: int = 0
    seconds: float = 0.0
    calls: float = 0.0
    evaluations: float = 0.0
    full_calls: float = 0.0
    features: NDArray[np.float64] | None = None
    rmse: NDArray[np.float64] | None = None
    ssim: NDArray[np.float64] | None = None
    shown: NDArray[np.uint8] | None = None
    others: float | None = None
    again: int = 0
    error: str = ""


class Store:
    """A sweep's folder: plan.json and work/. Raises OSError if it cannot be written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = writable_folder(folder)
        self.work = self.folder / "work"

    def begin(self, plan: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
        """Write the plan, or take the one that is there. Raises ValueError if there is one and resume is False, or if
        it belongs to another model, seed or measurement."""
        path = self.folder / PLAN
        if path.exists():
            expect(resume, f"{self.folder} holds a sweep already; go on with it by --resume, or give another --out")
            found = read_plan(path)
            for key, value in plan["fixed"].items():
                before = found.get("fixed", {}).get(key, MISSING.get(key))
                expect(before == value, f"{path} was made with {key} {before!r}, not {value!r}; give another --out")
            found |= {key: value for key, value in plan.items() if key != "fixed"}  # with more settings than before
        else:
            found = dict(plan)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        remove_parts(writable_folder(self.work))
        return found

    def load(self, slug: str, number: int) -> Unit | None:
        """A round that is done, else None. A damaged file counts as not done."""
        arrays = _load(self._unit(slug, number))
        if arrays is None:
            return None
        about = json.loads(str(arrays.pop("about")))
        found: dict[str, Any] = {key: arrays.get(key) for key in ("features", "rmse", "ssim", "shown")}
        return Unit(**about, **found)

    def save(self, slug: str, number: int, unit: Unit) -> None:
        """Keep a round."""
        arrays = {key: getattr(unit, key) for key in ("features", "rmse", "ssim", "shown")}
        about = {key: value for key, value in vars(unit).items() if key not in arrays}
        kept = {key: value for key, value in arrays.items() if value is not None}
        _save(self._unit(slug, number), about=np.array(json.dumps(about)), **kept)

    def load_reference(self, slug: str, count: int) -> Tensor | None:
        """Pictures of samples 0 to count - 1, if as many are there."""
        arrays = _load(self.work / f"reference-{slug}.npz")
        if arrays is None or len(arrays["pictures"]) < count:
            return None
        return torch.from_numpy(arrays["pictures"][:count])

    def save_reference(self, slug: str, pictures: Tensor) -> None:
        """Keep the pictures of a converged run."""
        _save(self.work / f"reference-{slug}.npz", pictures=pictures.float().cpu().numpy())

    def _unit(self, slug: str, number: int) -> Path:
        return self.work / f"{slug}-round{number}.npz"


def read_plan(path: Path) -> dict[str, Any]:
    """What plan.json says. Raises ValueError that names it if it is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not the plan of a sweep: {error}") from error
    expect(isinstance(found, dict) and "fixed" in found, f"{path} is not the plan of a sweep")
    return found


def _save(path: Path, **arrays: Any) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _load(path: Path) -> dict[str, NDArray[Any]] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            return {key: found[key] for key in found.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError):
        return None
