"""The kernels of attention's gradients, as a sweep measures them: all gradients, with several tiles of one kernel and
one tile of the other."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.device import properties
from fastdiff.runtime.triton import precision
from fastdiff.runtime.tuning import Problem

PARTS = ("dq", "dkv")


class Given(NamedTuple):
    """What attention_backward takes first."""

    grad: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor


def candidates(part: str, a: Any) -> list[Candidate]:
    """Tiles of one of PARTS, the default first. a: arguments of attention; the candidates take a Given."""
    from fastdiff.kernels.attention.tiles import SWEPT_BACKWARD, choose, kind_of

    (batch, heads, queries, dim), keys, device = a.q.shape, a.k.shape[2], properties(a.q.device)
    sizes: dict[str, Any] = dict(queries=queries, keys=keys, heads=batch * heads, available=device.multiprocessors)
    kind = kind_of(a.q.dtype, precision())
    tiles = {each: choose(each, device.architecture, kind, dim, **sizes) for each in PARTS}
    tried = dict.fromkeys((tiles[part], *SWEPT_BACKWARD[part]))
    return [Candidate(f"triton {tile.said}", partial(_run, tiles={**tiles, part: tile})) for tile in tried]


def problem(part: str, op: Any, a: Any) -> tuple[Problem, list[Candidate]]:
    """As fastdiff.bench.sweep_cases.problem. PyTorch's own gradients are what the candidates are held to."""
    first, *others = candidates(part, a)
    found = Problem(
        f"attention {part}", f"attention {part}", a.q.device, [first], make=lambda: _given(op, a),
        reference=lambda given: _by_autograd(op, given), features=_features(a),
        oracle=lambda given: _by_autograd(op, Given(*(t.double() for t in given))),
    )  # fmt: skip
    return found, others


def _features(a: Any) -> dict[str, int]:
    return {"dim": a.q.shape[3], "queries": a.q.shape[2], "keys": a.k.shape[2]}


def _given(op: Any, a: Any) -> Given:
    from fastdiff.kernels.attention import attention_forward

    out, lse = attention_forward(a.q, a.k, a.v, precision=precision())
    return Given(torch.randn_like(out), a.q, a.k, a.v, out, lse)


def _run(given: Given, tiles: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    from fastdiff.kernels.attention import attention_backward

    return attention_backward(*given, precision=precision(), tile_dq=tiles["dq"], tile_dkv=tiles["dkv"])


def _by_autograd(op: Any, given: Given) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (given.q, given.k, given.v)]
        out = op.reference(op.Arguments(*leaves))[0]
        return torch.autograd.grad(out, leaves, given.grad)
