"""ada_layer_norm in C++ against torch's layer_norm with its modulation, and against the speed of a copy.

python benchmarks/bench_ada_layer_norm.py
"""

import pytest

from fastdiff.bench import cases
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops import ada_layer_norm


@pytest.mark.parametrize("case", cases.of("ada_layer_norm", "benchmark"), ids=str)
def test_ada_layer_norm(measure, case):
    measure(case, ada_layer_norm, ada_layer_norm.plain)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
