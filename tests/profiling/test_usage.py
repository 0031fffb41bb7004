"""The line of Python that a profile prints runs, for every way to name a model and every setting."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy

import fastdiff
from fastdiff.profiling import get_subject
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.usage import python_line

QUICK = dict(solvers=["ddim"], steps=[2], samples=3, reference_steps=8)
OWN = """
import toy
from fastdiff.profiling import Subject

def make():
    return Subject("mine", toy.Toy(), toy.SHAPE, toy.SCHEDULE, "eps", toy.conditions, guidance=2.0)

def fields():
    return toy.unconditional()
"""


def run(line, folder, before=""):
    """In a Python of its own, as someone does who copied the line: the shape of the samples."""
    code = f"import torch, fastdiff\n{before}\n{line}\nprint(tuple(x.shape), float(x.abs().max()))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(toy.__file__).parent)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    shape, largest = found.stdout.rsplit(" ", 1)
    assert 0.1 < float(largest) < 10
    return shape


@pytest.mark.parametrize("name", ["own:make", "own:fields", "own.py:make", "own.py:fields"])
def test_the_line_for_an_entry_point(name, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    sys.modules.pop("own", None)  # of another test
    try:
        found = fastdiff.profile(name, **QUICK, out="out")
    finally:
        sys.modules.pop("own", None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(found.line, elsewhere if ".py" in name else tmp_path) == "(9, 3, 8, 8)"
    assert found.line in (tmp_path / "out" / "index.html").read_text(encoding="utf-8").replace("&#39;", "'")


def test_the_line_for_a_function(tmp_path):
    found = fastdiff.profile(toy.unconditional, **QUICK, out="out")
    assert run(found.line, tmp_path) == "(9, 3, 8, 8)"


def test_the_line_for_a_subject_that_was_made_by_hand(tmp_path):
    """It takes the name of the documentation: `subject`."""
    made = replace(toy.subject(), code="")
    found = fastdiff.profile(made, **QUICK, out="out")
    assert "fastdiff.load" not in found.line
    assert run(found.line, tmp_path, "import toy; subject = toy.subject()") == "(9, 3, 8, 8)"
    local = fastdiff.profile(lambda: made, **QUICK, out="local")
    assert local.line == found.line


SETTINGS = [
    Setting("ddim", 3, guidance=2.0),
    Setting("dpmpp-2m", 3, guidance=1.23456789, interval=(-1.5, 2.0)),
    Setting("dpmpp-2m", 3, guidance=2.0, interval=(float("-inf"), 1.0)),
    Setting("ddim", 3, guidance=2.0, guidance_every=2),
    Setting("ddim", 3, guidance=2.0, interval=(-1.5, 2.0), guidance_every=3),
    Setting("ddim", 3, grid=(1.0, 0.5, 0.25, 0.0)),
    Setting("ddim", 3, threshold=1.0),
    Setting("ddim", 3, threshold=1.0, percentile=0.995),
    Setting("ddim", 3, precision="bfloat16", guidance=2.0),
    Setting("ddim", 3, precision="int8", backend="optimize"),
    Setting("ddim", 3, grid="logsnr"),
    Setting("ddim", 3, backend="reference"),
    Setting("ddim", 3, backend="cpu"),
    Setting("ddim", 3, backend="optimize"),
    Setting("rk45", 1),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
def test_the_line_draws_what_was_profiled(setting):
    subject = toy.subject()
    space = {"torch": torch, "fastdiff": fastdiff}
    exec(python_line(subject, setting, count=4), space)
    expected = Drawer(subject, 0).draw(setting, 0, 4).samples
    torch.testing.assert_close(space["x"].float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["emoji-unet-32", "emoji-dit-64"])
@pytest.mark.parametrize(
    "change", [{"cache": "deep:2"}, {"precision": "bfloat16"}, {"interval": (-1.0, 2.0)}, {"backend": "cpu"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_the_line_for_settings_of_a_bundled_model(name, change):
    if name == "emoji-dit-64":
        change = {"cache": "blocks:2"} if "cache" in change else change
    subject = get_subject(name)
    setting = replace(Setting("ddim", 2, guidance=subject.guidance), **change)
    space = {"torch": torch, "fastdiff": fastdiff}
    exec(python_line(subject, setting, count=2), space)
    assert space["x"].shape == (2, *subject.shape)
