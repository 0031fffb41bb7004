"""`fastdiff sample` with a distilled model: its own solver, steps and grid, and no guidance, unless asked for."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff.cli.main import main
from fastdiff.models.info import Sampling


@pytest.fixture
def distilled(monkeypatch, tmp_path, capsys):
    model = fastdiff.load("emoji-unet-32")
    model.info = replace(model.info, sampling=Sampling("ddim", "trailing", 2, (4,), "emoji-unet-32", 2.0))
    load = fastdiff.load
    monkeypatch.setattr(fastdiff, "load", lambda name, **options: model)

    def sample(*arguments):
        out = tmp_path / "x.png"
        with pytest.raises(SystemExit) as end:
            main(["sample", "--count", "2", "--zoom", "1", "--json", "--out", str(out), *arguments])
        assert end.value.code == 0
        return json.loads(capsys.readouterr().out), np.asarray(Image.open(out))

    yield sample
    monkeypatch.setattr(fastdiff, "load", load)


def test_its_own_way_is_the_default(distilled):
    facts, own = distilled("--class", "food")
    assert (facts["solver"], facts["steps"], facts["guidance"]) == ("ddim", 2, 1.0)
    _, same = distilled("--class", "food", "--solver", "ddim", "--steps", "2", "--grid", "trailing", "--guidance", "1")
    assert (own == same).all()
    _, guided = distilled("--class", "food", "--guidance", "2")
    assert (own != guided).any()


def test_another_solver_is_as_with_other_models(distilled):
    facts, other = distilled("--solver", "heun", "--steps", "3")
    assert (facts["solver"], facts["steps"]) == ("heun", 3)
    _, same = distilled("--solver", "heun", "--steps", "3", "--grid", fastdiff.solvers.get_solver("heun").grid)
    assert (other == same).all()
    facts, _ = distilled("--solver", "euler")
    assert facts["steps"] == 15
