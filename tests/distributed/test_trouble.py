"""Workers and drivers that are killed, models that fail, full disks: no sample is lost, none is there twice."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_job

from fastdiff import distributed
from fastdiff.distributed import api
from fastdiff.distributed.storage import Folder, Patient

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills by POSIX signals")
LINE = "import sys, json; from fastdiff import distributed; distributed.sample(**json.loads(sys.argv[1]))"


def make(out, **options):
    return distributed.sample(small_job.MODEL, out, **{**small_job.JOB, **options})


def check_whole(folder, expected):
    """Each sample once, all files those that the records say."""
    found = distributed.sample(None, folder, resume=True)
    assert found.sha256 == expected.sha256
    assert found.samples == expected.samples
    assert not found.differing
    covered = []
    for path in (Path(folder) / "samples").iterdir():
        with np.load(path) as file:
            covered += range(int(file["first"]), int(file["first"]) + len(file["samples"]))
        record = json.loads((Path(folder) / "records" / f"{path.stem}.json").read_text())
        assert record["files"][f"samples/{path.name}"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(covered) == list(range(found.samples))
    assert not list(Path(folder).rglob(".writing-*"))


def wait_until_gone(processes):
    """Workers end when their driver does."""
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "a worker outlives its driver"
        time.sleep(0.05)


def broken(self, number):
    raise RuntimeError("always")


def workers_of(process):
    """Numbers of the processes that a process started."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc")
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_kill_9_of_workers_and_drivers_at_random_moments(tmp_path, kills, monkeypatch):
    job = small_job.JOB | {"count": 40 * kills + 2}  # ten units for each kill
    expected = make(tmp_path / "calm", **job)
    monkeypatch.setenv("BREAK", "slow")
    monkeypatch.setenv("BREAK_SECONDS", "0.05")  # of each call of the network, three for a unit
    out = tmp_path / "killed"
    job |= {"model": small_job.MODEL, "out": str(out), "workers": 2, "threads": 1, "resume": True}
    rng = random.Random(0)
    driver, before = None, 0
    try:
        for number in range(kills):
            if driver is None:
                driver = subprocess.Popen([sys.executable, "-c", LINE, json.dumps(job)])
            wanted = before + rng.randint(1, 4)
            while len(list(out.glob("records/*.json"))) < wanted:
                assert driver.poll() is None
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.3))
            assert driver.poll() is None
            victims = workers_of(driver.pid)
            if number % 3 == 1:
                driver.kill()
                driver.wait()
                driver = None
                wait_until_gone(victims)
            elif victims:
                os.kill(rng.choice(victims), signal.SIGKILL)
            before = len(list(out.glob("records/*.json")))
    finally:
        if driver is not None:
            driver.kill()
            driver.wait()
            wait_until_gone(victims)
    assert 0 < before < 10 * kills
    monkeypatch.delenv("BREAK")
    check_whole(out, expected)


def test_a_unit_that_kills_its_workers_is_reported_and_the_others_are_made(tmp_path, monkeypatch):
    expected = make(tmp_path / "calm")
    monkeypatch.setenv("BREAK", "kill")
    monkeypatch.setenv("BREAK_AT", "9")
    out = tmp_path / "out"
    found = make(out, workers=2, threads=1, limits=distributed.Limits(deaths=2))
    ((unit, why),) = found.failed.items()
    assert unit == (8, 11)
    assert "ended with status -9 (0 failures, 2 deaths)" in why
    assert found.samples == 18
    assert found.sha256 == ""
    (told,) = json.loads((out / "summary.json").read_text())["failed"]
    assert told == {"first": 8, "last": 11, "why": why}
    monkeypatch.delenv("BREAK")
    check_whole(out, expected)


@pytest.mark.parametrize(
    ("how", "why"),
    [("error", "the model raised RuntimeError: poisoned"), ("nan", "values that are NaN")],
    ids=["error", "nan"],
)
def test_a_unit_that_fails_is_reported_and_the_others_are_made(tmp_path, monkeypatch, how, why):
    monkeypatch.setenv("BREAK", how)
    monkeypatch.setenv("BREAK_AT", "21")
    found = make(tmp_path)
    assert list(found.failed) == [(20, 21)]
    assert why in found.failed[20, 21]
    assert found.failed[20, 21].endswith("(3 failures, 0 deaths)")
    assert found.samples == 20


def test_a_model_that_always_fails_ends_it_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(small_job.Small, "misbehave", broken)
    with pytest.raises(RuntimeError, match=r"the first 2 units all failed: .* RuntimeError: always"):
        distributed.sample(small_job.subject(), tmp_path, **small_job.JOB, limits=distributed.Limits(starts=2))


@pytest.fixture
def calm(tmp_path, monkeypatch):
    """What comes out if nothing happens. From here on, the first that makes sample 5 sleeps for ten minutes."""
    expected = make(tmp_path / "calm")
    monkeypatch.setenv("BREAK", "late")
    monkeypatch.setenv("BREAK_AT", "5")
    monkeypatch.setenv("BREAK_ONCE", str(tmp_path / "once"))
    return expected


def test_a_worker_that_is_late_does_not_hold_the_others_up(tmp_path, calm):
    told = []
    found = make(tmp_path / "out", workers=2, threads=1, on_progress=told.append)
    assert found.sha256 == calm.sha256
    assert told[-1].copies == 1
    assert told[-1].seconds < 500


def test_a_worker_that_hangs_is_stopped(tmp_path, calm):
    told = []
    limits = distributed.Limits(unit_seconds=4)
    found = make(tmp_path / "out", workers=1, threads=1, limits=limits, on_progress=told.append)
    assert found.sha256 == calm.sha256
    assert told[-1].deaths == 1


def test_workers_that_cannot_start_end_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    # five deaths end it, and the fifth and sixth may be noticed together
    with pytest.raises(
        RuntimeError, match=r"[56] workers in a row died before they did anything: worker .* ended with"
    ):
        make(tmp_path, workers=2)


def test_a_full_disk_ends_it_and_what_is_made_is_kept(tmp_path, monkeypatch):
    expected = make(tmp_path / "calm")
    left = [9]  # files that there is room for

    def write(self, name, content):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, f"cannot write {self.path / name}: No space left on device")
        return full(self, name, content)

    full = Folder.write
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", write)
        with pytest.raises(OSError, match=r"cannot write .*: No space left on device. What is made is kept"):
            make(tmp_path / "out")
    assert len(list((tmp_path / "out" / "records").iterdir())) == 3  # of the nine, two are the manifest's
    check_whole(tmp_path / "out", expected)


def test_a_store_that_fails_now_and_then_loses_nothing(tmp_path, monkeypatch):
    expected = make(tmp_path / "calm")
    rng, failures, whole = random.Random(0), [], Folder.write

    def write(self, name, content):
        if rng.random() < 0.4:
            failures.append(name)
            raise OSError(errno.EIO, f"cannot write {name}: Input/output error")
        whole(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", write)
        patch.setattr(api, "open_storage", lambda out: Patient(Folder(out), lambda seconds: None))
        found = make(tmp_path / "out")
    assert len(failures) > 3
    assert found.sha256 == expected.sha256
    check_whole(tmp_path / "out", expected)
