"""The processes of torchrun as workers."""

import json
import subprocess
import sys

import pytest
import small_job
import torch

from fastdiff import distributed

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of PyTorch is without it")
RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
COMMAND = "from fastdiff.cli.main import main; main()"
JOB = ["--model", small_job.MODEL, "--count", "22", "--batch", "4", "--shard", "4", "--solver", "ddim", "--steps", "3"]


def test_they_make_the_same_samples_and_rank_0_says_so(tmp_path, monkeypatch):
    (tmp_path / "command.py").write_text(COMMAND, encoding="utf-8")
    expected = distributed.sample(small_job.MODEL, tmp_path / "one", **small_job.JOB, features="pixels", threads=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["distribute", "sample", *JOB, "--features", "pixels", "--out", str(tmp_path / "two"), "--json"]
    ended = subprocess.run(
        [*RUN, str(tmp_path / "command.py"), *arguments], capture_output=True, text=True, check=False, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    told = json.loads(line)
    assert told["sha256"] == expected.sha256
    assert told["kinds"] == list(expected.kinds)
    assert sorted(told["workers"]) == ["0", "1"]
    assert sum(each["units"] for each in told["workers"].values()) == 6
    for path in (tmp_path / "one" / "statistics").iterdir():
        assert (tmp_path / "two" / "statistics" / path.name).read_bytes() == path.read_bytes()


def test_workers_of_its_own_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match="torchrun's processes are the workers; leave workers and cluster out"):
        distributed.sample(small_job.MODEL, tmp_path, **small_job.JOB, workers=2)


def alone(monkeypatch):
    """The only process of a run."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_what_fails_is_tried_again_and_reported_and_a_restart_goes_on(tmp_path, monkeypatch):
    expected = distributed.sample(small_job.MODEL, tmp_path / "one", **small_job.JOB)
    out, told = tmp_path / "two", []
    with monkeypatch.context() as patch:
        alone(patch)
        patch.setenv("BREAK", "error")
        patch.setenv("BREAK_AT", "9")
        found = distributed.sample(small_job.MODEL, out, **small_job.JOB, on_progress=told.append)
    assert list(found.failed) == [(8, 11)]
    assert "poisoned" in found.failed[8, 11]
    assert found.failed[8, 11].endswith("(3 failures)")
    assert (found.samples, found.sha256) == (18, "")
    assert (told[-1].made, told[-1].given_up, told[-1].waiting, told[-1].running) == (5, 1, 0, 0)
    with monkeypatch.context() as patch:
        alone(patch)
        patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        again = distributed.sample(small_job.MODEL, out, **small_job.JOB)
    assert again.sha256 == expected.sha256
    assert again.workers["0"].units == 1
