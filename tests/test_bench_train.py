"""The benchmark of a training step runs, checks gradients first, and says what is wrong with its arguments."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "benchmarks" / "bench_train.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_a_step_is_checked_and_timed(tmp_path):
    result = run("--small", "--batch", "4", "--rounds", "2", "--json", str(tmp_path / "out.json"))
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert set(row["seconds"]) == {"eager", "eager, plain attention", "fastdiff"}
    assert all(0 < found["p20"] <= found["median"] <= found["p80"] for found in row["seconds"].values())
    assert all(0 < error < 1e-5 for error in row["errors"].values())
    best = min(row["seconds"][name]["median"] for name in ("eager", "eager, plain attention"))
    assert row["ratio"] == best / row["seconds"]["fastdiff"]["median"]
    assert f"{row['ratio']:.2f}x of {row['baseline']}" in result.stdout


def test_bad_arguments():
    result = run("--batch", "0")
    assert result.returncode == 2
    assert "--batch must be a whole number >= 1, got 0" in result.stderr
