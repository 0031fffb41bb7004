"""The candidates of each operator on a GPU: our kernels with several tiles or plans, and PyTorch's own.

`FINDERS` has a function (op, a) -> Found by the operator's name. An operator without one has its Triton kernel and
PyTorch.
"""

from collections.abc import Callable
from typing import Any

from fastdiff.ops.candidates import attention, conv2d, group_norm_silu, layer_norms, linear
from fastdiff.ops.candidates.shared import Found, default

FINDERS: dict[str, Callable[[Any, Any], Found]] = {
    "ada_layer_norm": layer_norms.find,
    "attention": attention.find,
    "conv2d": conv2d.find,
    "group_norm_silu": group_norm_silu.find,
    "linear": linear.find,
    "residual_ada_layer_norm": layer_norms.find,
}

__all__ = ["FINDERS", "Found", "default"]
