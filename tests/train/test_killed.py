"""A training that is killed again and again ends with the weights of one that never was."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from small_runs import RUN, train_and_tell

KILLS = 10
RUN = replace(RUN, steps=300, checkpoint_every=7, validate_every=20)


@pytest.fixture(scope="module")
def processes():
    """Torch and fastdiff are imported once, not in every process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_runs"])
    with pytest.MonkeyPatch.context() as patch:  # the server does not get this process's path
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        forkserver.ensure_running()
    return context


def start(processes, folder):
    """A training in a process of its own, and where it tells its steps."""
    folder.mkdir(exist_ok=True)
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=train_and_tell, args=(RUN, folder, there), daemon=True)
    process.start()
    there.close()
    return process, here


def rest(connection, told):
    """The last step that is told of; `told` if no further one is."""
    try:
        while True:
            told = connection.recv()
    except (EOFError, OSError):  # its end is closed, by a kill perhaps in the middle of a number
        return told


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no such kill")
def test_ten_kills_at_random_moments_lose_only_the_steps_since_the_checkpoint_before(tmp_path, processes):
    moments, every = random.Random(0), RUN.checkpoint_every
    done = 0
    for _ in range(KILLS):
        process, connection = start(processes, tmp_path / "killed")
        began = connection.recv()
        assert done - every <= began <= done
        for _ in range(moments.randint(1, 27)):
            done = connection.recv()
        time.sleep(moments.uniform(0, 0.005))
        process.kill()
        done = rest(connection, done)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        path = tmp_path / "killed" / "checkpoint.pt"
        saved = torch.load(path)["step"] if path.exists() else 0
        assert saved % every == 0
        assert 0 <= done - saved <= every
    for name in ("killed", "whole"):
        process, connection = start(processes, tmp_path / name)
        assert rest(connection, 0) == RUN.steps
        process.join()
        assert process.exitcode == 0
    expected, found = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert found["step"] == RUN.steps
    assert found["losses"] == expected["losses"]
    for part in ("model", "ema"):
        for name, value in expected[part].items():
            assert torch.equal(found[part][name], value), f"{part} {name}"
    for number, state in expected["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(found["optimizer"]["state"][number][name], value), f"optimizer {number} {name}"
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["checkpoint.pt", "log.csv"]
