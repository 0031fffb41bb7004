"""The operations that fastdiff makes fast, one file each: arguments, docstring, reference, kernels, gradients."""

from typing import Any

from fastdiff.ops.ada_layer_norm import ada_layer_norm
from fastdiff.ops.add_group_norm_silu import add_group_norm_silu
from fastdiff.ops.attention import attention
from fastdiff.ops.conv2d import conv2d
from fastdiff.ops.group_norm_silu import group_norm_silu
from fastdiff.ops.linear import linear
from fastdiff.ops.linear_combine import linear_combine
from fastdiff.ops.op import Op
from fastdiff.ops.residual_ada_layer_norm import residual_ada_layer_norm

_OPS: tuple[Op[Any], ...] = (
    ada_layer_norm, add_group_norm_silu, attention, conv2d, group_norm_silu, linear, linear_combine,
    residual_ada_layer_norm,
)  # fmt: skip
OPS = {op.name: op for op in _OPS}
# Those with kernels in Triton; for the others the libraries that torch calls are as good as there is.
TRITON_OPS = tuple(op.name for op in _OPS if op.has_triton)

__all__ = [
    "OPS",
    "TRITON_OPS",
    "ada_layer_norm",
    "add_group_norm_silu",
    "attention",
    "conv2d",
    "group_norm_silu",
    "linear",
    "linear_combine",
    "residual_ada_layer_norm",
]
