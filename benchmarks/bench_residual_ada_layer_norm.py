"""residual_ada_layer_norm in C++ against the same in torch, and against the speed of a copy.

python benchmarks/bench_residual_ada_layer_norm.py
"""

import pytest

from fastdiff.bench import cases
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops import residual_ada_layer_norm


@pytest.mark.parametrize("case", cases.of("residual_ada_layer_norm", "benchmark"), ids=str)
def test_residual_ada_layer_norm(measure, case):
    measure(case, residual_ada_layer_norm, residual_ada_layer_norm.plain)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
