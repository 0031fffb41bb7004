"""Of attention: our kernel with several tiles, that for few keys ("few_keys") and that for Hopper ("gluon"); cuDNN's,
FlashAttention 2 and the memory-efficient one in PyTorch, each called by name, as scaled_dot_product_attention takes the
first that it can, which need not be the quickest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.backends import cuda

from fastdiff.ops.candidates.shared import Found, torch_candidate, triton_candidate, triton_candidates
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.device import properties
from fastdiff.runtime.triton import precision

_MULTIPLE = 8  # of numbers in a head, without which PyTorch pads before it calls these
MAX_SCORES = 1 << 25  # at once, in the oracle


def find(op: Any, a: Any) -> Found:
    """With maps or a mask, PyTorch's kernels are left to its own choice."""
    plain = torch_candidate(op)
    if a.return_maps or a.return_lse:
        return Found([*triton_candidates(op, a), plain])
    absent: dict[str, str] = {}
    ours = triton_candidates(op, a, lambda: [*_few_keys(op, a), *_gluon(op, a, absent), *_tiles(op, a)])
    theirs = _by_torch(a) if a.mask is None else []
    hopper = properties(a.q.device).exact in ("sm_90", "sm_100", "sm_103")
    # cuDNN was the quickest on sm_90 in nearly all that was measured. Elsewhere nothing was: PyTorch's choice is safe.
    cudnn = [c for c in theirs if c.name == "cudnn" and hopper]
    first = [*cudnn, *ours, plain] if hopper else [plain, *ours]
    candidates = [*first, *(c for c in theirs if c not in cudnn)]
    if a.mask is not None:
        return Found(candidates)
    return Found(candidates, {"dim": a.q.shape[3], "queries": a.q.shape[2], "keys": a.k.shape[2]}, absent)


def oracle(op: Any, a: Any) -> tuple[Tensor]:
    """The reference for wide types, some heads at a time, so that the maps of all heads are never in memory."""
    batch, heads, queries, _ = a.q.shape
    keys = a.k.shape[2]
    mask = None if a.mask is None else a.mask.expand(batch, heads, queries, keys)
    at_once = max(1, MAX_SCORES // max(1, queries * keys))
    out = a.q.new_empty(*a.q.shape[:3], a.v.shape[3])
    for b in range(batch):
        for h in range(0, heads, at_once):
            place = (slice(b, b + 1), slice(h, h + at_once))
            some = a._replace(q=a.q[place], k=a.k[place], v=a.v[place], mask=None if mask is None else mask[place])
            out[place] = op.plainly(some, False)[0]
    return (out,)


def _tiles(op: Any, a: Any) -> list[Candidate]:
    """Our kernel with each tile that was among the quickest somewhere on this architecture, beside its own choice."""
    from fastdiff.kernels.attention.tiles import TIMED, kind_of, widths

    kind, width = kind_of(a.q.dtype, precision()), sum(widths(a.q.shape[3]))
    if a.mask is not None:
        return []
    tiles = [tile for most, tile in TIMED.get((properties(a.q.device).architecture, kind), ()) if width <= most]
    return [triton_candidate(op, f"triton {tile.said}", tile) for tile in tiles]


def others(op: Any, a: Any) -> list[Candidate]:
    """For a sweep: our kernel with every tile that may be quick somewhere."""
    from fastdiff.kernels.attention.tiles import SWEPT

    if a.mask is not None or op.unsupported_by_triton(a) is not None:
        return []
    return [triton_candidate(op, f"triton {tile.said}", tile) for tile in SWEPT]


def _few_keys(op: Any, a: Any) -> list[Candidate]:
    """The kernel that holds all keys of a head, for half types without a mask."""
    from fastdiff.kernels.attention.few_keys import FewKeys, unfit

    if a.mask is not None or a.q.element_size() != 2 or unfit(a.q.shape[3], a.k.shape[2]) is not None:
        return []
    return [triton_candidate(op, "few_keys", FewKeys())]


def _gluon(op: Any, a: Any, absent: dict[str, str]) -> list[Candidate]:
    """On sm_90 the kernel for Hopper as it is cut up by shape, and the other cut for heads of this width. Why it cannot
    be there goes into `absent`."""
    device = properties(a.q.device)
    if a.mask is not None or device.exact != "sm_90" or a.q.element_size() != 2:
        return []
    from fastdiff.kernels.attention.hopper import cuts, missing, unfit

    if (reason := missing() or unfit(a.q, a.k, a.v, a.factor)) is not None:
        absent["gluon"] = reason
        return []
    batch, heads, queries, dim = a.q.shape
    first, other = cuts(dim, queries, a.k.shape[2], batch * heads, device.multiprocessors)
    return [triton_candidate(op, "gluon", first), triton_candidate(op, f"gluon {other.said}", other)]


def _by_torch(a: Any) -> list[Candidate]:
    """Those of PyTorch's kernels that it says can take this on this device, if not switched off."""
    q, k, v = a.q, a.k, a.v
    if q.shape[3] % _MULTIPLE or v.shape[3] != q.shape[3] or not q.numel() or not k.numel():
        return []
    given = cuda.SDPAParams(q, k, v, None, 0.0, False, False)
    usable = {name: getattr(cuda, f"can_use_{name}_attention", lambda given: False) for name in _CALLS}
    return [Candidate(name, _CALLS[name]) for name in _CALLS if usable[name](given)]


def _cudnn(a: Any) -> tuple[Tensor, None, None]:
    aten = torch.ops.aten._scaled_dot_product_cudnn_attention.default
    return aten(a.q, a.k, a.v, None, False, scale=a.factor)[0], None, None


def _flash(a: Any) -> tuple[Tensor, None, None]:
    return torch.ops.aten._scaled_dot_product_flash_attention.default(a.q, a.k, a.v, scale=a.factor)[0], None, None


def _efficient(a: Any) -> tuple[Tensor, None, None]:
    aten = torch.ops.aten._scaled_dot_product_efficient_attention.default
    return aten(a.q, a.k, a.v, None, False, scale=a.factor)[0], None, None


_CALLS = {"cudnn": _cudnn, "flash": _flash, "efficient": _efficient}
