"""The frame of the benchmarks: what is wrong is not timed, and what is reported is what was measured."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff.bench.cases import Case
from fastdiff.bench.compare import Row, check, compare
from fastdiff.bench.heap import heap, run_benchmark
from fastdiff.bench.report import table, verdict
from fastdiff.bench.timing import Timing

ROOT = Path(__file__).parents[1]


def case(**changes):
    def make(device="cpu"):
        return {"x": torch.randn(64, 65, device=device), "rows": [torch.ones(65, device=device)], "factor": 2.0}

    given = {"op": "softmax", "shape": (64, 65), "dtype": torch.float32, "make": make, "bytes": 2 * 64 * 65 * 4}
    return Case(**given | changes)


def theirs(x, rows, *, factor):
    return (x * factor).softmax(dim=-1) * rows[0]


def ours(x, rows, *, factor):
    y = torch.exp(x * factor)
    return y / y.sum(dim=-1, keepdim=True) * rows[0]


@pytest.mark.parametrize("backward", [False, True])
def test_what_is_measured(backward):
    row, run = compare(case(backward=backward, flops=1000), ours, theirs, seconds=0.05)
    assert row.ratio == row.torch.median / row.ours.median
    assert row.share == pytest.approx(1000 / row.ours.median / row.matmul_flops)
    assert row.record()["ours"]["median"] == row.ours.median
    result = run()
    assert isinstance(result, tuple) == backward  # gradients


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, rows, factor: theirs(x, rows, factor=factor) * (1 + 1e-4),
        lambda x, rows, factor: torch.full_like(x, float("nan")),
        lambda x, rows, factor: theirs(x, rows, factor=factor)[:-1],
        lambda x, rows, factor: theirs(x, rows, factor=factor).double(),
        lambda x, rows, factor: (theirs(x, rows, factor=factor),) * 2,
    ],
)
def test_what_is_wrong_is_not_timed(wrong, monkeypatch):
    monkeypatch.setattr("fastdiff.bench.compare.interleave", lambda *a, **k: pytest.fail("was timed"))
    with pytest.raises(AssertionError, match="64x65-float32"):
        compare(case(), wrong, theirs)


def test_wrong_gradients_are_found():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.001

    with pytest.raises(AssertionError, match="backward: result 0 is off"):
        compare(case(backward=True), lambda x, rows, factor: Wrong.apply(ours(x, rows, factor=factor)), theirs)


def test_half_precision_and_empty_results():
    inputs = {"x": torch.randn(64, 65).bfloat16(), "rows": [torch.ones(65).bfloat16()], "factor": 2.0}
    check(case(dtype=torch.bfloat16), theirs, theirs, inputs)
    check(case(), theirs, theirs, {"x": torch.ones(0, 65), "rows": [torch.ones(65)], "factor": 2.0})


def test_the_table():
    rows = [
        Row(case(detail="fast"), Timing(2e-4, 1e-4, 3e-4), Timing(1e-4, 9e-5, 1.1e-4), Timing(5e-5, 5e-5, 5e-5), None),
        Row(case(detail="slow, a"), Timing(1e-5, 1e-5, 1e-5), Timing(2e-5, 2e-5, 2e-5), Timing(1e-5, 1e-5, 1e-5), None),
    ]
    made = table("softmax", rows)
    cells = [list(column.cells) for column in made.columns]
    assert cells[4] == ["100 (90-110)", "20.0 (20.0-20.0)"]
    assert cells[5] == ["2.00x", "0.50x"]
    assert cells[7] == ["50%", "50%"]
    assert f"{heap()} heap" in made.title
    assert verdict(rows) == "2 cases, slower than torch: 64x65-float32-slow-a"


def test_heaps(monkeypatch):
    seen = []

    def run(command, env, check):
        seen.append((env.get("MALLOC_MMAP_THRESHOLD_"), env["OMP_PROC_BIND"], command[-2:]))
        return subprocess.CompletedProcess(command, len(seen) - 1)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    assert run_benchmark("file.py", ["-x"]) == 1  # one of both failed
    assert run_benchmark("file.py", ["--heap", "raised", "-x"]) == 2
    raised = str(1 << 30)
    assert [heap for heap, _, _ in seen] == [None, raised, raised]
    assert all((pinned, rest) == ("true", ["file.py", "-x"]) for _, pinned, rest in seen)
    with pytest.raises(SystemExit, match="default or raised"):
        run_benchmark("file.py", ["--heap"])


def test_a_benchmark_runs():
    pytest.importorskip("pytest_benchmark", reason="belongs to the bench extra")
    found = subprocess.run(
        [sys.executable, "benchmarks/bench_ada_layer_norm.py", "--heap", "default", "-k", "2x16x64"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "2 cases" in found.stdout


def test_the_checks_of_the_gpu_benchmark_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton_process import interpret

    interpret("bench_gpu", "checks")
