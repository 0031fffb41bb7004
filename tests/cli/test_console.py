"""Progress into a file: a line every 10%, from every command that takes long."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import fastdiff
from fastdiff.cli import profile, train
from fastdiff.cli.console import Bars, console, progress, say_if_busy
from fastdiff.cli.main import main
from fastdiff.models.unet import UNetConfig
from fastdiff.train.emoji import recipes

LINE = re.compile(r"^(\d+)%, \d+ s: (.*)$", re.M)


def percents(text):
    return [int(percent) for percent, _ in LINE.findall(text)]


def test_a_line_every_tenth(capsys):
    with progress() as bars:
        task = bars.add("work", total=40)
        for _ in range(40):
            bars.advance(task)
        bars.advance(task)  # more than was thought
        bars.add("unknown")
    assert percents(capsys.readouterr().err) == list(range(10, 101, 10))


def test_steps_larger_than_a_tenth_and_runs_that_go_on(capsys):
    bars = Bars()
    task = bars.add("work", total=3)
    for _ in range(3):
        bars.advance(task)
    again = bars.add("goes on", total=100, completed=35)
    bars.update(again, completed=36, description="now")
    bars.update(again, completed=41)
    bars.stop()
    text = capsys.readouterr().err
    assert percents(text) == [30, 60, 100, 40]
    assert LINE.findall(text)[-1] == ("40", "now")
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("load", "threads", "policy", "said"),
    [(4.26, 2, "", True), (0.5, 2, "", False), (4.26, 1, "", False), (4.26, 2, "PASSIVE", False), (2.0, 2, "", False)],
)
def test_a_busy_machine_is_said_with_what_helps(load, threads, policy, said, monkeypatch, capsys):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    say_if_busy()
    line = "this machine is busy (load 4.3 on 2 cores); OMP_NUM_THREADS=1 may be faster\n"
    assert capsys.readouterr().err == (line if said else "")


def test_threads_change_no_byte_of_a_picture(tmp_path):
    """So that the advice costs nothing."""
    command = [
        sys.executable,
        "-c",
        "from fastdiff.cli.main import main; main()",
        "sample",
        "--count",
        "2",
        "--steps",
        "2",
    ]
    for threads in ("1", "2"):
        out = tmp_path / f"{threads}.png"
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_bars_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "_force_terminal", True)
    with progress() as bars:
        task = bars.add("work", total=2)
        bars.advance(task)
        bars.update(task, completed=2, description="done")
    text = capsys.readouterr().err
    assert "2/2" in text
    assert not LINE.findall(text)


def test_profile_and_sample(tmp_path, capsys):
    quick = dict(samples=12, reference_steps=8, out="out")
    profile.run("toy:subject", {"solvers": "ddim", "steps": "2,4,6", "guidance": "1"}, False, **quick)
    found = percents(capsys.readouterr().err)
    assert found == sorted(set(found))
    assert found[-1] == 100
    assert len(found) >= 5
    with pytest.raises(SystemExit):
        main(["sample", "--count", "1", "--steps", "10"])
    assert percents(capsys.readouterr().err) == list(range(10, 101, 10))


def test_train(tmp_path, monkeypatch, capsys):
    """On a network that is quick, with the pictures of the real one."""
    network = UNetConfig(channels=(8, 16), blocks=1, attention_levels=(1,), num_classes=9, groups=4, head_channels=8)
    recipe = replace(recipes.RECIPES["emoji-unet-32"], steps=20, batch=2, network=network)
    monkeypatch.setitem(recipes.RECIPES, "emoji-unet-32", recipe)
    pytest.importorskip("emoji", reason="belongs to the train extra")
    try:
        train.load_emoji(32)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    train.run("emoji-unet-32", "run", None, None, None, "cpu")
    assert percents(capsys.readouterr().err) == list(range(10, 101, 10))
    assert fastdiff.models.bundled.load_files(tmp_path / "run" / "emoji-unet-32.json").info.card["steps"] == 20
    assert torch.load(tmp_path / "run" / "checkpoint.pt")["step"] == 20
