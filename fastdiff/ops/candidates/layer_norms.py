"""Of the layer norms with modulation: our kernel with several plans, and PyTorch's."""

from __future__ import annotations

from typing import Any

from fastdiff.ops.candidates.shared import Found, torch_candidate, triton_candidate, triton_candidates
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.device import properties


def find(op: Any, a: Any) -> Found:
    """Ours first: it reads and writes the rows once, PyTorch's three kernels do three times."""
    x = a[0]
    features = {
        "numbers": x.numel(),
        "channels": x.shape[2],
        "modulated": int(not (a.scale is a.shift is None)),
        "gated": int(getattr(a, "gate", None) is not None),
    }
    return Found([*triton_candidates(op, a, lambda: _plans(op, a)), torch_candidate(op)], features)


def _plans(op: Any, a: Any) -> list[Candidate]:
    from fastdiff.kernels.ada_layer_norm.plan import alternatives, plan

    x = a[0]
    if not x.numel():
        return []
    batch, rows, channels = x.shape
    chosen = plan(batch, rows, channels, x.element_size(), properties(x.device).multiprocessors)
    others = alternatives(chosen, rows, channels)
    return [triton_candidate(op, f"triton {other.said}", other) for other in others]
