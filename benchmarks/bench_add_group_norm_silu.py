"""add_group_norm_silu on the CPU, PyTorch's additions and group_norm_silu's kernel, against all of it in torch.

python benchmarks/bench_add_group_norm_silu.py
"""

import pytest

from fastdiff.bench import cases
from fastdiff.bench.heap import run_benchmark
from fastdiff.ops import add_group_norm_silu
from fastdiff.runtime.choice import use


def in_torch(**inputs):
    """All by PyTorch."""
    with use("reference"):
        return add_group_norm_silu.plain(**inputs)


@pytest.mark.parametrize("case", cases.of("add_group_norm_silu", "benchmark"), ids=str)
def test_add_group_norm_silu(measure, case):
    measure(case, add_group_norm_silu, in_torch)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
