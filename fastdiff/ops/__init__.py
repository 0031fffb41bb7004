"""The operations that fastdiff makes fast, one file each: docstring, reference, what kernels support, registration."""

from fastdiff.ops.ada_layer_norm import ada_layer_norm
from fastdiff.ops.attention import attention
from fastdiff.ops.conv2d import conv2d
from fastdiff.ops.conv2d_weights import PackedConv2d
from fastdiff.ops.group_norm_silu import group_norm_silu
from fastdiff.ops.linear import linear
from fastdiff.ops.linear_combine import linear_combine

OPS = ("ada_layer_norm", "attention", "conv2d", "group_norm_silu", "linear", "linear_combine")
# Those with kernels in Triton; for the others the libraries that torch calls are as good as there is.
TRITON_OPS = ("ada_layer_norm", "attention", "group_norm_silu", "linear_combine")

__all__ = [
    "OPS",
    "TRITON_OPS",
    "PackedConv2d",
    "ada_layer_norm",
    "attention",
    "conv2d",
    "group_norm_silu",
    "linear",
    "linear_combine",
]
