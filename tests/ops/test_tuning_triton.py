"""Tiles and plans of the Triton kernels as candidates: right, and timed where that is allowed. In Triton's interpreter
with a stand-in for the device; no GPU."""

import os
from pathlib import Path

import pytest
from triton_process import interpret

TESTS = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDIFF_TUNE_FILE", str(tmp_path / "new" / "times.json"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))  # of stand_in_device
    monkeypatch.delenv("FASTDIFF_TUNE", raising=False)
    return tmp_path / "new" / "times.json"


@pytest.mark.parametrize("setting", ["0", "1", "all"])
def test_tiles_of_gradients_are_timed_once(setting, file, monkeypatch):
    monkeypatch.setenv("FASTDIFF_TUNE", setting)
    interpret("tuning", "backward", setting)
    assert file.exists() == (setting != "0")


@pytest.mark.parametrize("program", ["tiles", "operators", "wrong_tile"])
def test_candidates(program):
    interpret("tuning", program)


def test_every_tile_of_a_sweep_is_right():
    interpret("sweep", "measures")
