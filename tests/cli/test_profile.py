"""`fastdiff profile` as a user runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import run_command

import fastdiff
from fastdiff.cli import profile as command
from fastdiff.cli.main import main
from fastdiff.profiling.plan import Plan


def profile(*arguments):
    return run_command("profile", *arguments)


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


OWN = """
import torch
from fastdiff.profiling import Subject
from fastdiff.schedules import VPDiscrete

def make():
    return Subject("mine", lambda x, t: 0.5 * x, (3, 8, 8), VPDiscrete.linear(), "eps", features="pixels")

def network():
    return torch.nn.Identity()
"""


def test_a_model_in_the_current_folder_with_the_command_itself(tmp_path):
    """A console script, unlike `python -c`, does not have the current folder on its path."""
    (tmp_path / "own_profile.py").write_text(OWN)
    script = Path(sys.executable).parent / "fastdiff"
    quick = ["--solvers", "ddim", "--steps", "2", "--samples", "3", "--reference-steps", "8", "--json"]
    result = subprocess.run(
        [script, "profile", "--model", "own_profile:make", *quick], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    line = json.loads(result.stdout)["line"]
    again = subprocess.run(
        [sys.executable, "-c", f"import torch, fastdiff; {line}; print(*x.shape)"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert again.stdout == "9 3 8 8\n", again.stderr
    resumed = subprocess.run([script, "profile", "--resume", "--json"], capture_output=True, text=True, check=False)
    assert json.loads(resumed.stdout)["line"] == line
    assert "1 setting, 3 rounds of 1" in resumed.stderr
    for arguments, message in (
        (["--resume", "--steps", "5,9"], "was made with steps 2, not 5,9"),
        (["--resume", "--out", "nothing-here"], "nothing-here holds no sweep to go on with"),
        (["--model", "own_profile.py:network", "--out", "x"], "must return a profiling.Subject"),
        (["--model", "own_profile:nothing", "--out", "x"], "own_profile has no 'nothing'"),
    ):
        refused = profile(*arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert message in refused.stderr
        assert not (tmp_path / "nothing-here").exists()


def test_help_shows_every_way_to_name_a_model(capsys):
    with pytest.raises(SystemExit):
        main(["profile", "--help"])
    text = " ".join(re.sub(r"[│|]", " ", capsys.readouterr().out).split())
    assert "module:function or file.py:function" in text


def test_minutes_that_cannot_be_kept_are_said(monkeypatch, capsys):
    def planned(*_, on_plan, **__):
        on_plan(Plan(4, 3, 200.0, "--steps 5,8"), 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(fastdiff, "profile", planned)
    with pytest.raises(KeyboardInterrupt):
        run()
    said = " ".join(capsys.readouterr().err.split())
    assert "about 3 min that is longer than --minutes asks for; to keep to it: --steps 5,8" in said


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


def test_a_sweep_of_which_nothing_ran_fails_and_says_every_reason_once(monkeypatch, tmp_path, capsys):
    def broken(setting):
        raise NotImplementedError("not here")

    monkeypatch.setattr("fastdiff.profiling.drawing.using", broken)
    with pytest.raises(ValueError, match="no setting could be run; the first, ddim, 2 steps: NotImplementedError"):
        run(axes={"steps": "2,4"})
    said = capsys.readouterr().err
    assert "failed: ddim, 2 steps and 1 more: NotImplementedError: not here\n" in said
    assert "the front" not in said
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


def test_interrupting_at_once_promises_nothing(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fastdiff, "profile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert "stopped before anything was measured; nothing is kept" in " ".join(capsys.readouterr().err.split())


def test_interrupting_once_the_plan_is_written_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    """Without --resume the same command would be refused."""

    def interrupted(*_, out, **__):
        (tmp_path / out).mkdir()
        (tmp_path / out / "plan.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(fastdiff, "profile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert "--resume goes on" in " ".join(capsys.readouterr().err.split())


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
