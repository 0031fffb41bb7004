"""Of group norm and SiLU: our kernel with several plans, and PyTorch's."""

from __future__ import annotations

from typing import Any

import torch

from fastdiff.ops.candidates.shared import Found, torch_candidate, triton_candidate, triton_candidates
from fastdiff.ops.tensors import layout
from fastdiff.runtime.candidates import Candidate


def find(op: Any, a: Any) -> Found:
    """Ours first: it was the quicker one in all that was measured."""
    last = layout(a.x, a.skip) is not torch.contiguous_format
    features = {
        "numbers": a.x.numel() + (0 if a.skip is None else a.skip.numel()),
        "channels_last": int(last),
        "adaptive": int(a.scale is not None or a.shift is not None),
    }
    return Found([*triton_candidates(op, a, lambda: _plans(op, a)), torch_candidate(op)], features)


def _plans(op: Any, a: Any) -> list[Candidate]:
    from fastdiff.kernels.group_norm_silu.launch import other_plans

    flat = op.flat(a)
    return [triton_candidate(op, f"triton {plan.said}", plan) for plan in other_plans(flat.x, a.num_groups, flat.skip)]
