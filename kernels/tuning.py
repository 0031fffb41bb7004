"""Tiles chosen by timing them, where FASTDIFF_AUTOTUNE=1 asks for it; otherwise tables are all there is.

A choice is made at the first call of a shape, which then takes as long as compiling and timing all candidates, and is
kept in a file: FASTDIFF_TILES, or fastdiff/tiles.json in the user's folder of caches (XDG_CACHE_HOME).
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import triton
from triton.runtime.errors import OutOfResources

from fastdiff.files import replacing
from fastdiff.kernels.attention_tiles import Tile

ROUNDS = 10
_chosen: dict[str, Tile] = {}


def enabled(device: torch.device) -> bool:
    """Whether tiles are to be timed: asked for, and no graph is being captured, in which nothing can be waited for."""
    if os.environ.get("FASTDIFF_AUTOTUNE") != "1":
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def best(key: Sequence[object], tiles: Sequence[Tile], run: Callable[[Tile], object], device: torch.device) -> Tile:
    """The quickest of the tiles, as timed now or before. key: of what is run, besides device and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    whole = " ".join(map(str, (name, f"triton-{triton.__version__}", *key)))
    if not _chosen:
        _chosen.update(_read())
    if whole not in _chosen:
        seconds = {tile: _seconds(lambda tile=tile: run(tile), device) for tile in tiles}
        _chosen[whole] = min(seconds, key=lambda tile: seconds[tile])
        _write()
    return _chosen[whole]


def path() -> Path:
    """The file of choices."""
    given = os.environ.get("FASTDIFF_TILES")
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


def _read() -> dict[str, Tile]:
    file = path()
    if not file.exists():
        return {}
    try:
        return {key: Tile(*values) for key, values in json.loads(file.read_text(encoding="utf-8")).items()}
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
