"""`fastdiff profile` as a user runs it."""

import json
import subprocess
import sys

import pytest
import torch

import fastdiff
from fastdiff.cli import profile as command
from fastdiff.cli.main import main
from fastdiff.profiling.plan import Plan

COMMAND = [sys.executable, "-c", "from fastdiff.cli.main import main; main()", "profile"]


def profile(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_profile_prints_the_line_that_uses_the_pick(tmp_path):
    options = ["--guidance", 1, "--target-rmse", 1.5, "--out", tmp_path / "report", "--json"]
    result = profile("--solvers", "ddim,dpmpp-2m", "--steps", "2,4", "--samples", 6, "--reference-steps", 8, *options)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["samples"] == 6
    assert "6 samples" in result.stderr
    assert result.stderr.count("FID") == result.stderr.count("too few for FID") == 1
    assert facts["line"] in result.stderr
    assert facts["picked"]["rmse"]["value"] <= 1.5
    space = {"fastdiff": fastdiff, "torch": torch}
    exec(facts["line"], space)
    assert space["x"].shape == (9, 3, 32, 32)
    assert (tmp_path / "report" / "index.html").is_file()


def run(**changes):
    """The command in this process, on a model that is quick to call."""
    axes = {"solvers": "ddim", "steps": "2", "guidance": "1"} | changes.pop("axes", {})
    options = dict(samples=3, minutes=1.0, reference_steps=8, seed=0, features=None, data=None, budget=None,
                   target_rmse=None, out="report", resume=False)  # fmt: skip
    command.run("toy:subject", axes, False, **(options | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"solvers": "dimm"}}, "unknown solver 'dimm'; did you mean 'ddim'"),
        ({"axes": {"steps": "5,x"}}, "--steps '5,x': "),
        ({"out": "file/report"}, "cannot write to the folder"),
        ({"features": "vgg"}, "unknown feature extractor 'vgg'"),
    ],
)
def test_bad_arguments_are_said_alone(changes, message, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises((ValueError, OSError), match=message):
        run(**changes)
    assert capsys.readouterr() == ("", "")  # and no progress bar before it
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_budget_that_nothing_meets(tmp_path):
    with pytest.raises(
        ValueError, match="no setting takes at most 1e-09 s a sample; the fastest, ddim, 2 steps, takes"
    ):
        run(budget="0.000001ms")
    assert (tmp_path / "report" / "index.html").is_file()


def test_what_is_not_given_is_left_to_the_api(monkeypatch):
    given = {}

    def stopped(model, **options):
        given.update(options)
        raise ValueError("here")

    monkeypatch.setattr(fastdiff, "profile", stopped)
    with pytest.raises(SystemExit):
        main(["profile", "--steps", "3"])
    assert set(given) == {"steps", "resume", "on_progress", "on_plan"}
    assert given["steps"] == [3]


def test_interrupting_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_, on_plan, **__):
        on_plan(Plan(16, 3, 0.0), 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(fastdiff, "profile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    said = capsys.readouterr().err
    assert "5 settings, 3 rounds of 16: 48 samples each" in said
    assert "--resume goes on" in " ".join(said.split())
