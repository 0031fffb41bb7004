"""The backend: a model's graph, captured by Dynamo, with its operations replaced by fastdiff's."""

from fastdiff.compiler.capture import compile_graph
from fastdiff.compiler.optimize import optimize, restore

__all__ = ["compile_graph", "optimize", "restore"]
