"""The operations that fastdiff makes fast: docstring, reference, what the kernels support, registration. One file an op."""

from fastdiff.ops.linear_combine import linear_combine

OPS = ("linear_combine",)

__all__ = ["OPS", "linear_combine"]
