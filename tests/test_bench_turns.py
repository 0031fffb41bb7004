"""Engines in processes of their own: none is bound to a core, each has its turn, and what is wrong is not timed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff.bench.turns import BINDING, Worker, available_memory, peak, take_turns, unbound

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
AFFINITY = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind threads to cores")
WORKER = """
import json, os, sys
sys.path[:] = [entry for entry in sys.path if entry]
from fastdiff.bench.turns import serve
name, log = sys.argv[1:]

def write(what):
    with open(log, "a") as file:
        file.write(f"{what} {name} {os.getpid()}\\n")

def prepare():
    print("this is not the protocol", flush=True)
    if name == "bad":
        raise ValueError("no such engine")
    if name == "dies":
        os._exit(7)
    write("starts")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (lambda: write("call")), {"environment": dict(os.environ), "cores": cores}

import fastdiff.bench.turns as turns
turns.LEAST = 0.0
serve(prepare)
if name != "bad":
    write("ends")
"""


def command(name, log):
    return [sys.executable, "-c", WORKER, name, str(log)]


def turns(log):
    """(what, name, process) in the order in which they happened."""
    return [tuple(line.split()) for line in log.read_text().splitlines()]


def test_each_engine_has_its_turn_in_every_round(tmp_path):
    log = tmp_path / "log"
    found = take_turns({name: command(name, log) for name in ("a", "bad", "b")}, rounds=3)
    events = [(what, name) for what, name, _ in turns(log)]
    one_turn = [("call", "a")] * 2 + [("call", "b")] * 2  # the first of two is not timed
    assert events[: 2 + 12] == [("starts", "a"), ("starts", "b"), *one_turn * 3]
    assert len({process for _, name, process in turns(log) if name == "a"}) == 1
    assert found["bad"]["failed"] == "ValueError: no such engine"
    for name in ("a", "b"):
        assert len(found[name]["all"]) == 3
        assert all(0 < seconds < 60 for seconds in found[name]["all"])
        assert found[name]["peak"] > 1e6


def test_engines_that_do_not_fit_into_memory_together_are_started_again(tmp_path):
    log = tmp_path / "log"
    found = take_turns({name: command(name, log) for name in ("a", "bad", "b")}, rounds=2, together=False)
    events = [(what, name) for what, name, _ in turns(log)]
    assert events == [(what, name) for name in "abab" for what in ("starts", "call", "call", "ends")]
    assert len({process for _, _, process in turns(log)}) == 4
    assert [len(found[name]["all"]) for name in ("a", "b")] == [2, 2]


def test_a_process_that_dies_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="ended with status 7"):
        take_turns({"dies": command("dies", tmp_path / "log")}, rounds=1)


@AFFINITY
def test_no_engine_inherits_a_binding(tmp_path, monkeypatch):
    for name in BINDING:
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # as OpenMP does to the thread that starts its own
    try:
        worker = Worker(command("a", tmp_path / "log"))
        worker.close()
        assert os.sched_getaffinity(0) == {min(before)}  # this process is left as it was
    finally:
        os.sched_setaffinity(0, before)
    assert worker.answer["cores"] == sorted(before)
    assert not set(BINDING) & worker.answer["environment"].keys()
    assert worker.answer["environment"]["OMP_NUM_THREADS"] == "2"


@AFFINITY
def test_cores_that_were_chosen_stay(tmp_path, monkeypatch):
    for name in BINDING:
        monkeypatch.delenv(name, raising=False)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})  # taskset
    try:
        worker = Worker(command("a", tmp_path / "log"))
        worker.close()
    finally:
        os.sched_setaffinity(0, before)
    assert worker.answer["cores"] == [max(before)]


def test_memory():
    assert unbound({"OMP_PLACES": "cores", "HOME": "/"}) == {"HOME": "/"}
    before = peak()
    held = torch.ones(50_000_000)
    assert peak() - before > 0.9 * held.nbytes or before > 4 * held.nbytes
    assert available_memory() is None or available_memory() > 1e6


def test_whole_models_on_a_small_one(tmp_path):
    """With the peers whose threads are their own, in a shell that binds threads."""
    for package in ("diffusers", "openvino", "onnxruntime", "onnx"):
        pytest.importorskip(package, reason="belongs to the bench extra")
    file = tmp_path / "small.json"
    found = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_models.py"), "--rows", "small", "--peers", "openvino,onnxruntime",
         "--rounds", "2", "--json", str(file)],
        capture_output=True, text=True, check=False, timeout=600, env=os.environ | {"OMP_PROC_BIND": "true"},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    (row,) = json.loads(file.read_text())["rows"]
    assert set(row["engines"]) == {"eager", "fastdiff", "openvino", "onnxruntime"}
    for engine in row["engines"].values():
        assert len(engine["all"]) == 2
        assert engine["error"] < 1e-4
        assert engine["peak"] > 1e8
    others = {name: seconds["median"] for name, seconds in row["seconds"].items() if name != "ours"}
    assert row["baseline"] == min(others, key=others.get)
    assert "of the best peer" in found.stdout


def test_what_is_wrong_is_not_timed(tmp_path, monkeypatch):
    pytest.importorskip("diffusers", reason="belongs to the diffusers extra")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("bench_models", BENCHMARKS / "bench_models.py")
    bench_models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench_models)
    threads = torch.get_num_threads()
    assert bench_models.expected("small", tmp_path / "expected.pt")["against"] == "float64"
    with torch.no_grad():
        call, first = bench_models.prepare("small", "eager", tmp_path, threads)
        assert first["error"] < 1e-5
        right = call()
        for wrong in (right * (1 + 1e-3), torch.full_like(right, float("nan"))):
            monkeypatch.setattr(bench_models, "engine", lambda *_, wrong=wrong: lambda: wrong)
            with pytest.raises(ValueError, match="not timed"):
                bench_models.prepare("small", "compile", tmp_path, threads)
