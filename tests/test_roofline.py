"""What the GPU kernels move, on paper, for the shapes of three models: benchmarks/roofline.py."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

FILES = sorted((Path(__file__).parents[1] / "benchmarks" / "measured").glob("h100-*.json"))
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "roofline.py"


def test_no_kernel_moves_more_than_a_tenth_above_the_least(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, SCRIPT, "--backward", "--json", out]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(out.read_text())
    rows = found["floors"]
    assert f"0 of {len(rows)} move more" in result.stdout
    assert {row["gpu"] for row in rows} == {"A100", "H100", "B200"}
    assert {row["op"].split()[0] for row in rows} == {
        "ada_layer_norm", "attention", "group_norm_silu", "linear_combine", "residual_ada_layer_norm"
    }  # fmt: skip
    for row in rows:
        assert row["least"] <= row["moved"] <= 1.1 * row["least"], row
        assert row["seconds"] >= row["least_seconds"] > 0
    (one,) = (r for r in rows if r["gpu"] == "A100" and r["op"] == "attention" and r["shape"] == [2, 8, 4096, 4096, 40])
    assert one["flops"] == 4 * 2 * 8 * 4096 * 4096 * 40
    assert one["seconds"] == pytest.approx(one["flops"] / 312e12)


def test_what_was_measured_stands_beside_its_floor(tmp_path):
    out = tmp_path / "rows.json"
    result = subprocess.run(
        [sys.executable, SCRIPT, "--json", out, "--measured", *FILES], capture_output=True, text=True, check=True
    )
    found = json.loads(out.read_text())["measured"]
    assert "Measured in a CUDA graph" in result.stdout
    assert {row["op"] for row in found} >= {"attention", "group_norm_silu", "linear", "conv2d"}
    for row in found:
        for best in row["quickest"].values():
            assert best is None or best[1] * 1e-6 > 0.7 * row["seconds"], row  # small inputs are read from L2
    (one,) = (
        row
        for row in found
        if row["op"] == "attention" and row["shape"] == [2, 8, 4096, 40] and row["detail"] == "4096 keys"
    )
    assert one["quickest"]["ours"] == ["triton 128x64/8/3", 182.76]
    assert one["quickest"]["torch"] == ["cudnn", 152.62]
    assert one["quickest"]["prototype"][0].startswith("prototype gl ")
    (prompt,) = (row for row in found if row["detail"] == "77 keys")
    assert prompt["quickest"]["ours"] is None  # its only tile gave wrong numbers
    (upsampled,) = (row for row in found if row["detail"] == "upsampled" and row["shape"] == [2, 640, 32, 32])
    assert upsampled["quickest"]["prototype"][1] == 64.0  # one of 54.36 gave wrong numbers
    empty = subprocess.run([sys.executable, SCRIPT, "--measured"], capture_output=True, text=True, check=True)
    assert "Measured in" not in empty.stdout


def test_every_kernel_has_a_row(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, SCRIPT, "--json", out, "--measured"]
    result = subprocess.run([*command, *FILES], capture_output=True, text=True, check=True)
    found = {row["kernel"]: row for row in json.loads(out.read_text())["kernels"]}
    assert {name.split(",")[0].split(" ")[0] for name in found} == {
        "ada_layer_norm", "add_bias", "add_group_norm_silu", "attention", "conv2d", "gated", "group_norm_silu",
        "interleave", "linear", "linear_combine", "phases", "residual_ada_layer_norm",
    }  # fmt: skip
    assert {name.split(", ")[1] for name in found if name.endswith(("gradients", "dq", "dkv"))} == {
        "gradients", "dq", "dkv"
    }  # fmt: skip
    assert found["attention"]["ours"] == [182.76, ""]
    assert found["attention for Hopper"]["design"] == [139.83, ""]
    assert found["attention to few keys"]["ours"] is None  # the tile that was wrong is no kernel's time
    assert found["attention to few keys"]["design"] == [8.49, ""]
    assert found["add_bias"]["design"][1] == "not checked"
    assert found["group_norm_silu, contiguous"]["ours"] == [14.43, ""]
    assert found["group_norm_silu, gradients"]["ours"] is found["group_norm_silu, gradients"]["design"] is None
    assert result.stdout.count("not measured") > 20
    for row in found.values():
        assert row["floor"] > 0
    subprocess.run(command, capture_output=True, check=True)
    assert all(row["ours"] is None for row in json.loads(out.read_text())["kernels"])
