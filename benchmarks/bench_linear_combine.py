"""linear_combine in C++ against the same sums in torch, and against the speed of a copy.

python benchmarks/bench_linear_combine.py
"""

import pytest

from fastdiff.bench import cases
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops import linear_combine


@pytest.mark.parametrize("case", cases.of("linear_combine", "benchmark"), ids=str)
def test_linear_combine(measure, case):
    measure(case, linear_combine, linear_combine.plain)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
