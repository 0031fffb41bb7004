"""Tiles of attention's kernels by shape, or, where FASTDIFF_AUTOTUNE=1 asks for it, by timing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastdiff.kernels import tuning
from fastdiff.kernels.attention_tiles import TILES, Tile, choose, kind_of, widths
from fastdiff.runtime.device import architecture, processors


def candidates(kernel: str, target: str, kind: str, dim: int, masked: bool, default: Tile) -> list[Tile]:
    """What may be timed for a kernel, the default first: the tiles that the tables hold for heads of this width and
    wider ones, which are known to need no more than there is. Arguments as of attention_tiles.choose."""
    tables = TILES[target, kind]
    table = tables.get(kernel + " masked", tables[kernel]) if masked else tables[kernel]
    wide = [tile for limit, tile in table if limit >= sum(widths(dim))]
    return list(dict.fromkeys([default, *wide]))


def tile_for(
    kernel: str, q: Tensor, k: Tensor, mask: Tensor | None, precision: str, run: Callable[[Tile], object]
) -> Tile:  # fmt: skip
    """The tile of a kernel ("forward", "dq", "dkv") for a call; run(tile): the call with this one."""
    (batch, heads, queries, dim), keys = q.shape, k.shape[2]
    target, kind = architecture(q.device), kind_of(q.dtype, precision)
    sizes: dict[str, Any] = dict(queries=queries, keys=keys, heads=batch * heads, available=processors(q.device))
    default = choose(kernel, target, kind, dim, masked=mask is not None, **sizes)
    if not tuning.enabled(q.device):
        return default
    masking = "none" if mask is None else mask.dtype
    key = (f"attention {kernel}", q.dtype, precision, dim, batch * heads, queries, keys, masking)
    return tuning.best(key, candidates(kernel, target, kind, dim, mask is not None, default), run, q.device)
