"""The candidates of each operator on a GPU: our kernels with several tiles or plans, and PyTorch's own.

`FINDERS` has a function (op, a) -> Found by the operator's name. An operator without one has its Triton kernel and
PyTorch.
"""

from collections.abc import Callable
from typing import Any

from fastdiff.ops.candidates import add_group_norm_silu, attention, conv2d, group_norm_silu, layer_norms, linear
from fastdiff.ops.candidates.shared import Found, default
from fastdiff.runtime.candidates import Candidate

FINDERS: dict[str, Callable[[Any, Any], Found]] = {
    "ada_layer_norm": layer_norms.find,
    "add_group_norm_silu": add_group_norm_silu.find,
    "attention": attention.find,
    "conv2d": conv2d.find,
    "group_norm_silu": group_norm_silu.find,
    "linear": linear.find,
    "residual_ada_layer_norm": layer_norms.find,
}

# Further ones by the operator's name, which a call does not time: a sweep does (`fastdiff bench ops --sweep`).
OTHERS: dict[str, Callable[[Any, Any], list[Candidate]]] = {"attention": attention.others}

__all__ = ["FINDERS", "OTHERS", "Found", "default"]
