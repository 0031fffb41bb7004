"""attention in C++ against torch's scaled_dot_product_attention, and against the speed of a matrix product.

python benchmarks/bench_attention.py
"""

import pytest

from fastdiff.bench import cases
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops import attention


@pytest.mark.parametrize("case", cases.of("attention", "benchmark"), ids=str)
def test_attention(measure, case):
    measure(case, attention, attention.plain)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
