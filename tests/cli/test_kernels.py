"""`fastdiff kernels`: what is compiled ahead of time for GPUs that are not here is as it should be."""

import json
import os
from pathlib import Path

import pytest
from commands import run_command
from triton_process import compile_ahead, interpret  # skips without Triton

from fastdiff.cli.kernels import COMPILED, TARGETS
from fastdiff.kernels.ahead_of_time import compile, occupancy


def run(*arguments, **environment):
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environment
    return run_command("kernels", *arguments, env=variables)


def test_the_table_and_the_file(tmp_path):
    out = tmp_path / "new" / "kernels.json"
    chosen = ["--target", "sm_90", "--target", "gfx942", "--op", "linear_combine", "--out", str(out)]
    result = run(*chosen, TRITON_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["kernels"]
    assert {row["target"] for row in rows} == {"sm_90", "gfx942"}
    assert {row["dtype"] for row in rows} == {"fp32", "fp16", "bf16"}
    for row in rows:
        assert row["op"] == "linear_combine"
        assert 8 <= row["registers"] <= 255
        assert row["stack"] == 0
        assert 0 < row["occupancy"] <= 1
        assert row["bytes_moved"] == row["bytes_least"] > 0
        assert row["detail"] in result.stdout
    assert f"{len(rows)} kernels" in result.stdout
    again = run(*chosen, "--json", TRITON_CACHE_DIR=str(tmp_path))
    assert json.loads(again.stdout)["kernels"] == rows


def test_what_cannot_be_compiled_is_said():
    result = run("--op", "linear_combine", TRITON_INTERPRET="1")
    assert result.returncode == 2
    assert "TRITON_INTERPRET" in result.stderr
    assert result.stderr.count("\n") == 1


def test_operators_import_nothing_that_is_for_ahead_of_time():
    interpret("run_time", "imports")


def test_every_target_is_known_everywhere():
    assert set(TARGETS) == set(compile.TARGETS) == set(occupancy.LIMITS)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_all_usual_kernels_compile_without_spills(target):
    """In Triton's own cache, which `fastdiff kernels` uses as well: minutes where nothing is in it."""
    result = run("--target", target, "--json")
    assert result.returncode == 0, result.stderr.splitlines()[-1]
    rows = json.loads(result.stdout)["kernels"]
    assert {row["op"] for row in rows} == set(COMPILED)
    for row in rows:
        assert row["stack"] == 0 or not target.startswith("sm_") or target == "sm_100", row
        assert row["shared"] <= compile.TARGETS[target].shared, row
        assert row["bytes_moved"] <= 1.1 * row["bytes_least"], row
        of_attention = row["op"] == "attention" and row["kernel"] in ("forward", "dq", "dkv")
        if (of_attention or row["kernel"] == "product") and row["dtype"] != "fp32":
            wanted = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}
            assert row["matrix_instruction"] == wanted[target], row


def test_every_folder_of_kernels_is_listed():
    folders = {path.parent.name for path in (Path(__file__).parents[2] / "kernels").glob("*/forward.py")}
    assert folders == set(COMPILED)
    compile_ahead("run_time", "sm_90", "listed")
