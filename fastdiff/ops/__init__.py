"""The operations that fastdiff makes fast, one file each: docstring, reference, what kernels support, registration."""

from fastdiff.ops.linear_combine import linear_combine

OPS = ("linear_combine",)

__all__ = ["OPS", "linear_combine"]
