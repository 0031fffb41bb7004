"""Checkpoint files: safetensors mapped into memory, pickles that hold nothing but tensors, folders with config.json."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.arguments import described
from fastdiff.errors import WeightsError, unknown
from fastdiff.models.checkpoints.layout import Checkpoint

# Where training scripts put the weights in what they save, the average over training first (DiT's and others' choice).
_WRAPPERS = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict", "model")
# What data-parallel training and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside "module.NAME"
_PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def read(source: str | Path | Mapping[str, Any], part: str | None = None) -> Checkpoint:
    """The tensors of a file, of a folder, or of a state dict that is already there. Nothing is copied, and of
    safetensors only the header is read.

    Raises WeightsError that names the file if it cannot be read, is damaged, or holds more than tensors.
    """
    if isinstance(source, Mapping):
        return Checkpoint(_tensors(source, "the state dict"), {}, "the state dict")
    if not isinstance(source, (str, Path)):
        raise TypeError(f"source must be a path or a state dict, got {described(source)}")
    path = Path(source)
    if not path.exists():
        raise WeightsError(f"cannot read {path}: No such file or folder; fastdiff.load(name) gives a bundled model")
    if path.is_dir():
        return _read_folder(path, part)
    tensors = _read_file(path)
    return Checkpoint(tensors, {}, str(path), mapped=getattr(tensors, "again", None))


class _Mapped(dict[str, Tensor]):
    """The tensors of safetensors files, and where each one is."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, Path] = {}

    def again(self, key: str) -> Tensor:
        """Through a mapping of its own, where the file is of safetensors."""
        if key not in self.files:
            return self[key]
        with _opened(self.files[key]) as file:
            return file.get_tensor(key)


def _read_folder(folder: Path, part: str | None) -> Checkpoint:
    """A model as diffusers saves it; of a whole pipeline the model in the folder `part`."""
    if (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        models = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
        if part is None:
            raise WeightsError(f"{folder} holds several models; part must be one of {', '.join(models)}")
        if part not in models:
            raise unknown("part", part, models)
        return _read_folder(folder / part, None)
    if not (folder / "config.json").is_file():
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise WeightsError(
            f"cannot read {folder / 'config.json'}, which diffusers saves beside weights: the folder holds {held}"
        )
    config = _read_json(folder / "config.json")
    candidates = [folder / f"diffusion_pytorch_model{ending}" for ending in
                  (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")]  # fmt: skip
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        # A variant of diffusers is in the name: model.fp16.safetensors, model.safetensors.index.fp16.json.
        indices = sorted(folder.glob("*.index*.json"))
        others = [*(sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))), *indices]
        if len(indices or others) != 1:
            found = ", ".join(other.name for other in others) or "no safetensors"
            raise WeightsError(
                f"{folder} must hold {candidates[0].name}, or one other file of weights, but has {found}"
            )
        path = (indices or others)[0]
    tensors = _read_shards(path) if path.suffix == ".json" else _read_file(path)
    return Checkpoint(tensors, config, str(folder), mapped=getattr(tensors, "again", None))


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names; it and they must agree."""
    where = _read_json(index).get("weight_map")
    if not isinstance(where, Mapping) or not all(isinstance(name, str) for name in where.values()):
        raise WeightsError(f"{index} has no weight_map from tensors to files")
    tensors = _Mapped()
    for name in sorted(set(where.values())):
        if Path(name).name != name:
            raise WeightsError(f"{index} names {name!r}, which is no file beside it")
        shard = _read_file(index.parent / name)
        listed = {key for key, file in where.items() if file == name}
        if listed != shard.keys():
            raise WeightsError(f"{index} and {name} disagree on {', '.join(sorted(listed ^ shard.keys())[:20])}")
        tensors.update(shard)
        tensors.files |= getattr(shard, "files", {})
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    """By what the file is, not by what it is called."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80" or path.suffix in _PICKLED:
        return _tensors(_unpickle(path, zipped=start[:2] == b"PK"), str(path))
    raise WeightsError(f"{path} is neither safetensors nor a file of torch.save")


def _read_safetensors(path: Path) -> _Mapped:
    tensors = _Mapped()
    with _opened(path) as file:
        for key in file.keys():  # noqa: SIM118
            tensors[key] = file.get_tensor(key)
            tensors.files[key] = path
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # checks the header against the file's size
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from error


def _unpickle(path: Path, *, zipped: bool) -> Any:
    """weights_only: torch's own reader of pickles, which makes tensors and containers and calls nothing else.

    Namespace, in which training scripts keep their arguments, is a container too: unpickling fills its attributes.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors, and no code from a checkpoint is run; save its state dict "
            f"with safetensors instead{_refused(error)}"
        ) from error
    except Exception as error:  # damaged bytes make torch.load raise nearly anything, and all of it means this
        raise WeightsError(f"{path} is damaged: {error}") from error


def _refused(error: pickle.UnpicklingError) -> str:
    """What torch's reader would have had to call, if it says so; its own advice is to call it."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f" (it refers to {found[1]})" if found else ""


def _tensors(content: Any, name: str) -> dict[str, Tensor]:
    """The state dict in what was saved: without what training scripts wrap around it and put before each name."""
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{name} holds no state dict: expected tensors by name, got {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise WeightsError(f"{name} must hold tensors by name, but these are something else: {', '.join(others[:20])}")
    if _COUNTER in content and all(key == _COUNTER or key.startswith("module.") for key in content):
        content = {key: value for key, value in content.items() if key != _COUNTER}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key[len(prefix) :]: value for key, value in content.items()}
    return dict(content)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WeightsError(f"cannot read {path}: {reason}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} must hold an object, got {type(content).__name__}")
    return content
