"""Tiles chosen by timing them, where FASTDIFF_AUTOTUNE=1 asks for it; otherwise tables are all there is.

A choice is made at the first call of a shape, which then takes as long as compiling and timing all candidates, and is
kept in a file: FASTDIFF_TILES, or fastdiff/tiles.json in the user's folder of caches (XDG_CACHE_HOME).
"""

from __future__ import annotations

import functools
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import triton
from triton.runtime.errors import OutOfResources

from fastdiff.files import replacing
from fastdiff.runtime import environment

Choice = TypeVar("Choice", bound=tuple)

ROUNDS = 10
_chosen: dict[str, list] = {}  # the numbers of a choice


def enabled(device: torch.device) -> bool:
    """Whether tiles are to be timed: asked for, and no graph is being captured, in which nothing can be waited for."""
    if not environment.read("FASTDIFF_AUTOTUNE", False):
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def best(
    key: Sequence[object], choices: Sequence[Choice], run: Callable[[Choice], object], device: torch.device
) -> Choice:
    """The quickest choice, as timed now or before. key: of what is run, besides device and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    whole = " ".join(map(str, (name, f"triton-{triton.__version__}", *key)))
    if not _chosen:
        _chosen.update(_read())
    for choice in choices:
        if list(choice) == _chosen.get(whole):
            return choice
    seconds = {choice: _seconds(functools.partial(run, choice), device) for choice in choices}
    quickest = min(seconds, key=lambda choice: seconds[choice])
    _chosen[whole] = list(quickest)
    _write()
    return quickest


def path() -> Path:
    """The file of choices."""
    given = environment.read("FASTDIFF_TILES")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(caches) / "fastdiff" / "tiles.json"


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of a call, after one that compiles; infinite where the device has too little for it."""
    try:
        run()
    except OutOfResources:
        return float("inf")
    times = []
    for _ in range(ROUNDS if device.type == "cuda" else 1):
        if device.type == "cuda":
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            started.record()
            run()
            ended.record()
            ended.synchronize()
            times.append(started.elapsed_time(ended) / 1e3)
        else:
            before = time.perf_counter()
            run()
            times.append(time.perf_counter() - before)
    return sorted(times)[len(times) // 2]


def _read() -> dict[str, list]:
    file = path()
    if not file.exists():
        return {}
    try:
        return {key: list(values) for key, values in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"fastdiff: {file} does not hold tiles ({error}); they are timed again", stacklevel=2)
        return {}


def _write() -> None:
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    # Another process may have added to it.
    kept = {**_read(), **_chosen}
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
