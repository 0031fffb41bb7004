"""The model that a name stands for: bundled, a diffusers folder, an entry point."""

import json
import sys

import numpy as np
import pytest
import torch
import toy

import fastdiff
from fastdiff.models import bundled
from fastdiff.profiling import get_extractor, get_subject
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.usage import python_line


def test_models_by_name():
    assert get_subject("toy:subject").name == "toy"
    assert get_subject(f"{toy.__file__}:unconditional").shape == toy.SHAPE
    for name, message in (
        ("emoji", "unknown model 'emoji'"),
        ("toy:nothing", "has no 'nothing'"),
        ("no_such:f", "No module"),
    ):
        with pytest.raises(ValueError, match=message):
            get_subject(name)
    with pytest.raises(TypeError, match=r"must return a profiling\.Subject"):
        get_subject(lambda: 3)


NEIGHBOURS = """
from __future__ import annotations
import dataclasses
import neighbour_of_the_entry_point as neighbour
import toy

@dataclasses.dataclass
class Made:
    subject: object

def make():
    return dataclasses.replace(Made(toy.subject()).subject, name=neighbour.NAME)

def module():
    return toy.Toy()
"""


@pytest.fixture
def own_model(tmp_path):
    """A module of the user's in the current folder, with another beside it; its name."""
    (tmp_path / "own_profile.py").write_text(NEIGHBOURS)
    (tmp_path / "neighbour_of_the_entry_point.py").write_text("NAME = 'mine'\n")
    path = list(sys.path)
    yield "own_profile"
    assert sys.path == path
    for name in ("own_profile", "neighbour_of_the_entry_point"):
        sys.modules.pop(name, None)


def test_modules_of_the_current_folder(own_model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    assert get_subject(f"{own_model}:make").name == "mine"


@pytest.mark.parametrize("name", ["own_profile.py:make", "{folder}/own_profile.py:make"])
def test_files_find_their_neighbours(own_model, name, tmp_path, monkeypatch):
    if name.startswith("{"):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert get_subject(name.format(folder=tmp_path)).name == "mine"
    assert get_subject(name.format(folder=tmp_path)).name == "mine"  # and again


def test_a_file_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "failing_entry_point.py").write_text("1 / 0")
    path = list(sys.path)
    with pytest.raises(ZeroDivisionError):
        get_subject("failing_entry_point.py:make")
    assert sys.path == path
    assert "failing_entry_point" not in sys.modules


def test_a_diffusers_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="belongs to the diffusers extra")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipe")
    found = fastdiff.profile(
        str(tmp_path / "pipe"), solvers=["ddim"], steps=[2], samples=3, reference_steps=8, out=tmp_path / "out"
    )
    (row,) = found.rows
    assert row["error"] == ""
    subject = get_subject(str(tmp_path / "pipe"))
    assert subject.prediction.name == "v"
    space = {"fastdiff": fastdiff, "torch": torch}
    exec(found.line, space)
    assert space["x"].shape == (9, 3, 8, 8)
    assert str(tmp_path / "pipe") in found.line  # whole, wherever Python is started


# Those that a profile has the conditions of.
PROFILED = [
    name
    for name in bundled.names()
    if "image" not in json.loads((bundled.folder() / f"{name}.json").read_text("utf-8"))
]


@pytest.mark.parametrize("backend", ["auto", "optimize"])
@pytest.mark.parametrize("name", PROFILED)
def test_the_line_for_a_bundled_model_runs(name, backend):
    subject = get_subject(name)
    setting = Setting("ddim", 2, guidance=subject.guidance, backend=backend)
    assert (setting.guidance > 1) == (subject.teacher is None)  # a distilled model has its teacher's in it
    space = {"torch": torch, "fastdiff": fastdiff}
    exec(python_line(subject, setting, count=3), space)
    assert space["x"].shape == (3, *subject.shape)
    cond, uncond = subject.conditions_of(0, 3)
    expected = fastdiff.sample(
        subject.model, (3, *subject.shape), solver="ddim", steps=2, seed=0, guidance=subject.guidance, uncond=uncond,
        cond=cond if subject.about.get("prompts") else subject.model.info.condition(
            list(subject.about["classes"][:3]), 3),
    )  # fmt: skip
    torch.testing.assert_close(space["x"], expected, rtol=1e-3, atol=1e-3)
    assert subject.pictures(space["x"]).shape[1] == 3


def test_bundled_model_classes_are_those_of_the_data():
    subject = get_subject("emoji-unet-32")
    cond, uncond = subject.conditions_of(0, 400)
    shares = torch.bincount(cond["y"], minlength=9) / 400
    np.testing.assert_allclose(shares, get_extractor("emoji").class_shares, atol=0.01)
    again, _ = subject.conditions_of(37, 5)
    assert torch.equal(again["y"], cond["y"][37:42])
    assert (uncond["y"] == 9).all()
