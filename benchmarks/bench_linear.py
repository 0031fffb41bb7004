"""linear in C++ against torch's, and against the speed of a matrix product.

    python benchmarks/bench_linear.py

On a machine without AMX torch computes both, and the ratio is 1.
"""

import pytest

from fastdiff.bench import cases
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops import linear


@pytest.mark.parametrize("case", cases.of("linear", "benchmark"), ids=str)
def test_linear(measure, case):
    measure(case, linear, linear.plain)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
