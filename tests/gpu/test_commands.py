"""The commands on the device: files, half precision, and one row of each benchmark."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.bench import timing
from fastdiff.bench.shares import shares

COMMAND = [sys.executable, "-c", "from fastdiff.cli.main import main; main()"]
ROOT = Path(__file__).parents[2]


def fastdiff_command(*arguments, command=COMMAND, cwd=None):
    found = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd)
    assert found.returncode == 0, found.stderr
    return found


def test_sample(device):
    pixels = []
    for place, dtype in (("cpu", "float32"), (device, "float32"), (device, "float16")):
        options = ["--steps", 3, "--count", 2, "--zoom", 1, "--device", place, "--dtype", dtype, "--json"]
        facts = json.loads(fastdiff_command("sample", "--class", "animals", "--out", "a.png", *options).stdout)
        assert facts["device"].startswith(place)
        assert facts["seconds"] > 0
        pixels.append(np.asarray(Image.open("a.png")).astype(float))
    assert np.abs(pixels[1] - pixels[0]).max() <= 2
    assert np.abs(pixels[2] - pixels[0]).mean() < 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_verify(dtype, device):
    found = json.loads(fastdiff_command("verify", "--device", device, "--dtype", dtype, "--json").stdout)
    assert found["same"] is True
    assert found["against"] == "float64"


def test_profile(device, tmp_path):
    options = ["--solvers", "ddim", "--steps", "4", "--samples", 4, "--reference-steps", 8, "--batch", 4]
    fastdiff_command("profile", "--device", device, "--dtype", "float32,float16", "--out", tmp_path / "a", *options)
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [row["error"] for row in found["rows"]] == ["", ""]
    assert all(row["seconds"]["median"] > 0 for row in found["rows"])
    assert json.loads((tmp_path / "a" / "plan.json").read_text())["fixed"]["device"].startswith(device)


def test_bench_models(device, tmp_path):
    pytest.importorskip("diffusers", reason="belongs to the bench extra")
    file = tmp_path / "rows.json"
    fastdiff_command(
        "bench", "models", "--device", device, "--dtype", "float16" if device != "cpu" else "bfloat16",
        "--rows", "small", "--against", "eager", "--minutes", 8 if device == "cpu" else 1.5, "--json", file,
        # The benchmarks are in the checkout, whose sources "python -c" would import in place of the package.
        command=[Path(sys.executable).with_name("fastdiff")], cwd=ROOT,
    )  # fmt: skip
    found = json.loads(file.read_text())
    (row,) = found["rows"]
    assert {"ours", "eager"} <= set(row["seconds"])
    assert row["left_out"] == []
    assert row["columns"]["error"] <= row["engines"]["fastdiff"]["allowed"]
    assert row["columns"]["first call, s"] > 0
    assert row["columns"]["20 steps over 20 calls"] > 0
    assert sum(row["engines"]["fastdiff"]["shares"]["kinds"].values()) == pytest.approx(1)


@pytest.mark.only_gpu
def test_bench_ops(device, tmp_path):
    file = tmp_path / "rows.json"
    fastdiff_command("bench", "ops", "--device", device, "--only", "group_norm_silu", "--json", file)
    found = json.loads(file.read_text())
    assert found["rows"]
    assert all(0 < row["seconds"][name]["median"] < 1 for row in found["rows"] for name in ("ours", "torch"))


def test_a_device_is_timed_by_its_own_clock(device):
    a = torch.randn(1024, 1024, device=device)
    small, large = (
        timing.interleave({"": lambda n=n: [a @ a for _ in range(n)]}, rounds=9, device=device)[""].p20 for n in (4, 64)
    )
    assert 2 < large / small < 128  # sixteen times the work: the clock is not that of launches, nor stands still
    found = shares(lambda: a @ a, device)
    assert max(found["kinds"], key=found["kinds"].get) == "product"
