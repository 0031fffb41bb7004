"""A sweep that is stopped, killed or out of disk: what is there afterwards, and going on from it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy

import fastdiff
from fastdiff import pictures
from fastdiff.profiling import sweep
from fastdiff.profiling.store import Store


class Stop:
    """Raises KeyboardInterrupt at the n-th thing that is told."""

    def __init__(self, after):
        self.left = after

    def __call__(self, what, done, total):
        self.left -= what.startswith("round")
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, data, monkeypatch):
    monkeypatch.setattr(sweep, "PASSES", 0)  # runs that are timed again are written again
    with pytest.raises(KeyboardInterrupt):
        fastdiff.profile(toy.subject, **toy.QUICK, data=data, out=tmp_path / "a", on_progress=Stop(8))
    facts = json.loads((tmp_path / "a" / "results.json").read_text())
    assert not facts["facts"]["complete"]
    assert sum(row["rounds"] for row in facts["rows"]) == 8
    assert "interrupted" in (tmp_path / "a" / "index.html").read_text(encoding="utf-8")

    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "work").iterdir()}
    torn = next(path for path in done if "round0" in path.name)
    torn.write_bytes(torn.read_bytes()[:50])  # as after a power cut on a file system that does not keep order
    resumed = fastdiff.profile(toy.subject, **toy.QUICK, data=data, out=tmp_path / "a", resume=True)
    assert resumed.complete
    assert all(path.stat().st_mtime_ns == when for path, when in done.items() if path != torn)
    whole = fastdiff.profile(toy.subject, **toy.QUICK, data=data, out=tmp_path / "b")
    for a, b in zip(resumed.rows, whole.rows):
        for key in ("label", "rmse", "ssim", "frechet", "kid", "precision", "samples", "calls"):
            assert a[key] == b[key]


def settings(found):
    return [row["label"] for row in found.rows]


def test_resuming_takes_everything_from_the_plan(tmp_path, data):
    """After Ctrl-C `resume` alone goes on: the same settings, seed, guidance, thresholds, data, budget."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(pictures.to_uint8(data[:8])):
        pictures.save_png(folder / f"{number}.png", pixels)
    given = dict(
        solvers=["ddim", "dpmpp-2m"], steps=[3, 4], guidance=[1.0, 2.0], intervals=[None, (-1.0, 2.0)],
        thresholds=[None, 1.0, fastdiff.Threshold(1.0, 0.9)], batches=[4], grids=[None, "logsnr"], reference_steps=16,
        samples=4, seed=5, features="toy:features", data=folder, budget="5s",
    )  # fmt: skip
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        fastdiff.profile("toy:subject", **given, out=out, on_progress=Stop(3))
    resumed = fastdiff.profile(None, out=out, resume=True)
    whole = fastdiff.profile("toy:subject", **given, out=tmp_path / "whole")
    assert settings(resumed) == settings(whole)
    for key in ("seed", "samples", "features", "data_pictures", "budget", "complete", "model"):
        assert resumed.facts[key] == whole.facts[key], key
    assert [row["rmse"] for row in resumed.rows] == [row["rmse"] for row in whole.rows]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solvers": ["heun"]}, "was made with solvers ddim, not heun"),
        ({"steps": [5, 6]}, "was made with steps 4,5, not 5,6"),
        ({"guidance": [2.0]}, "was made with guidance 1.0, not 2.0"),
        ({"thresholds": [1.0]}, "was made with thresholds none, not 1.0"),
        ({"grids": ["karras"]}, "was made with grids none, not karras"),
        ({"seed": 3}, "was made with seed 0, not 3"),
        ({"reference_steps": 16}, "was made with reference_steps 8, not 16"),
        ({"features": "toy:features"}, "was made with features 'pixels', not 'toy:features'"),
        ({"model": toy.unconditional}, "was made with model 'toy', not 'unconditional'"),
    ],
)
def test_resuming_another_sweep_is_refused(tmp_path, changes, message):
    given = dict(model=toy.subject, solvers=["ddim"], steps=[4, 5], guidance=[1.0], samples=3, reference_steps=8)
    fastdiff.profile(**given, out=tmp_path)
    with pytest.raises(ValueError, match=message):
        fastdiff.profile(**{"model": toy.subject} | changes, out=tmp_path, resume=True)


@pytest.mark.parametrize("plan", [None, "{", "[]", '{"fixed": {}}'])
def test_resuming_what_is_not_there_is_refused(tmp_path, plan):
    folder = tmp_path / "nothing-here"
    if plan is not None:
        folder.mkdir()
        (folder / "plan.json").write_text(plan)
    with pytest.raises(ValueError, match="nothing-here"):
        fastdiff.profile(toy.subject, out=folder, resume=True)
    assert folder.exists() == (plan is not None)  # it is not made


def test_a_sweep_of_a_subject_needs_it_again(tmp_path):
    fastdiff.profile(toy.subject(), solvers=["ddim"], steps=[4], samples=3, reference_steps=8, out=tmp_path)
    with pytest.raises(ValueError, match="model must be given"):
        fastdiff.profile(None, out=tmp_path, resume=True)
    assert fastdiff.profile(toy.subject(), out=tmp_path, resume=True).complete


def test_two_processes_in_one_folder_are_refused(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(Path(toy.__file__).parent)}
    )
    try:
        for _ in range(600):
            if (tmp_path / "plan.json").exists():
                break
            time.sleep(0.05)
        with pytest.raises(ValueError, match=rf"in use by another fastdiff \(process {process.pid}\)"):
            fastdiff.profile(toy.subject, out=tmp_path, resume=True)
    finally:
        process.kill()
        process.wait()
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["asked"]["axes"]["steps"] == [4, 6]
    fastdiff.profile(toy.subject, out=tmp_path, resume=True, samples=3)  # the lock died with its process


def test_resuming_may_add_settings_but_not_change_what_is_measured(tmp_path):
    fastdiff.profile(toy.subject, solvers=["ddim"], steps=[4], samples=6, reference_steps=8, out=tmp_path)
    more = dict(solvers=["ddim"], steps=[4, 5], samples=6, reference_steps=8, out=tmp_path)
    with pytest.raises(ValueError, match="holds a sweep already; go on with it by --resume"):
        fastdiff.profile(toy.subject, **more)
    assert [row["rounds"] for row in fastdiff.profile(toy.subject, **more, resume=True).rows] == [3, 3]
    assert len(fastdiff.profile(toy.subject, out=tmp_path, resume=True).rows) == 2  # the plan has them now
    with pytest.raises(ValueError, match="was made with seed 0, not 1"):
        fastdiff.profile(toy.subject, **more, resume=True, seed=1)


KILLED = """
import sys, toy, fastdiff
fastdiff.profile(toy.subject, solvers=["ddim"], steps=[4, 6], samples=3000, reference_steps=8, out=sys.argv[1])
"""


def test_a_killed_sweep_leaves_whole_files_and_no_more(tmp_path):
    folder = tmp_path / "sweep"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], env={**os.environ, "PYTHONPATH": str(Path(toy.__file__).parent)}
    )

    def whole():  # what is being written has a hidden name, and nobody reads it
        return [path for path in folder.glob("work/*round*.npz") if not path.name.startswith(".")]

    for _ in range(2400):
        time.sleep(0.05)
        if len(whole()) > 6:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(folder)
    units = whole()
    assert len(units) > 6
    for path in units:
        slug, number = path.stem.rsplit("-round", 1)
        assert store.load(slug, int(number)).seconds > 0
    (folder / "work" / ".writing-of-the-killed-one.npz").write_bytes(b"part")
    (folder / ".writing-plan.json").write_bytes(b"{")
    fastdiff.profile(toy.subject, out=folder, resume=True, samples=3)
    assert [path.name for path in folder.rglob(".*")] == []


def test_a_full_disk_is_said_and_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"No space left"):
        fastdiff.profile(toy.subject, solvers=["ddim"], steps=[4], samples=3, reference_steps=8, out=tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["plan.json"]
