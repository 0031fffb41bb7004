"""The backend: a model's graph, captured by Dynamo, with its operations replaced by fastdiff's."""

from fastdiff.backend.capture import compile_graph
from fastdiff.backend.optimize import optimize, restore

__all__ = ["compile_graph", "optimize", "restore"]
