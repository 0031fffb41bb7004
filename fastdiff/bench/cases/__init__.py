"""What the operators are given in tests, benchmarks, the roofline and `fastdiff.explain`: a file for each operator.

Each has `make`, which makes the arguments of a call; `SHAPES`, of the operator in published models; and `CASES`, by
what they are for:

- "benchmark": rows of benchmarks/bench_NAME.py, on the CPU.
- "gpu": rows of `fastdiff bench gpu`; "gpu-small": for a memory checker and Triton's interpreter, which are slow;
  "gpu-gradients": sizes that fill no tile, of those that have a Triton kernel.
- "sweep": what `fastdiff bench ops --sweep` measures on a GPU, in float16; "sweep-gradients": of attention's gradients.
- "smallest": the least that the kernels take, one for each dtype.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from fastdiff.bench.cases.case import MODELS, Case, Inputs, results, tensors, wanting_gradients, wide


def of(op: str, purpose: str) -> list[Case]:
    """The cases of an operator that are for this. Raises KeyError where it has none."""
    return _module(op).CASES[purpose]


def swept(op: str, purpose: str = "sweep") -> list[Case]:
    """The cases of an operator that a sweep of a GPU measures; none for an operator that has no such."""
    return _module(op).CASES.get(purpose, [])


def shapes(op: str) -> dict[str, list[tuple[int, ...]]]:
    """Those of an operator by the model that has them."""
    return _module(op).SHAPES


def _module(op: str) -> ModuleType:
    return importlib.import_module(f"fastdiff.bench.cases.{op}")


__all__ = ["MODELS", "Case", "Inputs", "of", "results", "shapes", "swept", "tensors", "wanting_gradients", "wide"]
