"""What the benchmarks of operators share: each case is checked, timed against torch, and shown in one table.

python benchmarks/bench_ada_layer_norm.py                     both heaps (fastdiff/bench/heap.py), one process each
python -m pytest benchmarks/bench_ada_layer_norm.py -k float32 --benchmark-json out.json
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# `python -m pytest` puts the current folder first, where the sources are: the installed package is what is timed.
ROOT = Path(__file__).parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

from fastdiff.bench.compare import compare  # noqa: E402
from fastdiff.bench.report import table, verdict  # noqa: E402

ROWS = pytest.StashKey[dict]()


@pytest.fixture
def measure(benchmark, request):
    """measure(case, ours, theirs): a row of the table, named after the test.

    Ours, torch's and a copy are timed in turns, and the ratio is of those times. It is in the JSON as extra_info;
    pytest-benchmark's own times, of ours alone, are taken after that.
    """

    def measured(case, ours, theirs):
        row, run = compare(case, ours, theirs)
        name = request.function.__name__.removeprefix("test_")
        benchmark.group = name
        benchmark.extra_info.update(row.record())
        benchmark.pedantic(run, rounds=5, iterations=max(1, round(0.002 / row.ours.median)))
        request.config.stash.setdefault(ROWS, {}).setdefault(name, []).append(row)

    return measured


def pytest_terminal_summary(config):
    from rich.console import Console

    console = Console(width=140)
    for name, rows in config.stash.get(ROWS, {}).items():
        console.print(table(name, rows))
        console.print(verdict(rows))
