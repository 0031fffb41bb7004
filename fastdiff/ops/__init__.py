"""The operations that fastdiff makes fast, one file each: docstring, reference, what kernels support, registration."""

from fastdiff.ops.ada_layer_norm import ada_layer_norm
from fastdiff.ops.linear_combine import linear_combine

OPS = ("ada_layer_norm", "linear_combine")

__all__ = ["OPS", "ada_layer_norm", "linear_combine"]
