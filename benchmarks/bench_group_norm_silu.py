"""group_norm_silu in C++ against torch's group_norm and silu, and against the speed of a copy.

python benchmarks/bench_group_norm_silu.py
"""

import pytest

from fastdiff.bench import cases
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops import group_norm_silu


@pytest.mark.parametrize("case", cases.of("group_norm_silu", "benchmark"), ids=str)
def test_group_norm_silu(measure, case):
    measure(case, group_norm_silu, group_norm_silu.plain)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
