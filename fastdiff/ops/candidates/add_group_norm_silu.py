"""Of what is added and the group norm of the sum: our kernel with several plans; one kernel that adds, or PyTorch's
additions, with group_norm_silu as it is chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.candidates.shared import Found, beyond_pointwise, torch_candidate, triton_candidate, triton_candidates
from fastdiff.ops.tensors import layout
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.dispatcher import is_memory

_SUM = "sum by triton"


def find(op: Any, a: Any) -> Found:
    """Ours first: it reads and writes the map once where PyTorch's additions do once each."""
    features = {"numbers": a.x.numel(), "adaptive": int(a.scale is not None or a.shift is not None)}
    found = triton_candidates(op, a, lambda: _plans(op, a))
    reason = beyond_pointwise(a.x)
    if reason is None and a.x.ndim == 4 and (a.x.is_contiguous() or layout(a.x) is torch.channels_last):
        found.append(Candidate(_SUM, lambda a: _summed(op, a)))
    absent = {} if reason is None else {_SUM: reason}
    return Found([*found, torch_candidate(op)], features, absent)


def _plans(op: Any, a: Any) -> list[Candidate]:
    from fastdiff.kernels.add_group_norm_silu import other_plans

    plans = other_plans(op.flat(a).x, a.num_groups)
    return [triton_candidate(op, f"triton {plan.said}", plan) for plan in plans]


def _summed(op: Any, a: Any) -> tuple[Tensor, Tensor]:
    from fastdiff.kernels.pointwise import add_bias

    if not all(is_memory(t) for t in op.tensors(a) if t is not None):
        return op.plainly(a, True)
    channel_bias = None if a.channel_bias is None else a.channel_bias.flatten(1)
    h = add_bias(a.x, a.conv_bias, channel_bias, a.residual, out=torch.empty_like(a.x))
    return h, op.normalized(a, h)
