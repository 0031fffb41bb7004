"""`bench models` within a time, `bench ops` inside graphs: what a GPU does is done by the CPU or a stand-in."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff.bench import gpu, shares, timing
from fastdiff.bench.cases import of
from fastdiff.bench.turns import Worker, peak, seconds_a_call
from fastdiff.cli import bench_gpu
from fastdiff.runtime import choice

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORKER = """
import json, os, sys, time
sys.path[:] = [entry for entry in sys.path if entry]
import fastdiff.bench.turns as turns
row, name, log, slow = sys.argv[1:]

def write(what):
    with open(log, "a") as file:
        file.write(f"{what} {row} {name}\\n")

def prepare():
    write("prepares")
    if f"{row} {name}" in slow.split(","):
        time.sleep(60)
    if row == "wrong" and name == "fastdiff":
        raise ValueError("differs by 1 of the output's RMS, allowed 0; not timed")
    if row == "lacks" and name == "eager":
        raise MemoryError("out of memory")
    write("ready")
    first = {"against": "float64"} if name == "expected" else {"first": 2.0, "error": 1e-3, "allowed": 2e-3}
    return (lambda: time.sleep(0.002 if name == "fastdiff" else 0.004)), first

def answer(what):
    def told():
        write(what)
        if what == "other":
            raise RuntimeError("no other size")
        return {"shares": {"seconds": 1.0, "kinds": {"norm": 1.0}, "kernels": []}, "loop": {"seconds": 0.05}}.get(
            what, {"seconds": 0.008})
    return told

turns.LEAST = 0.01
turns.serve(prepare, more={what: answer(what) for what in ("launched", "loop", "other", "shares")})
"""


@pytest.fixture
def in_time(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("models_in_time", BENCHMARKS / "models_in_time.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "models_in_time", module)  # for its dataclass
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LEAST", 0.0)
    return module


def commands(log, slow=""):
    return lambda row, name: [sys.executable, "-c", WORKER, row, name, str(log), slow]


def test_rows_within_the_time(in_time, tmp_path):
    log = tmp_path / "log"
    names = ["eager", "fastdiff", "compile"]
    results = in_time.measure(["a", "b"], names, commands(log), in_time.Budget(300), rounds=2)
    events = [line.split() for line in log.read_text().splitlines()]
    ready = [(row, name) for what, row, name in events if what == "ready"]
    assert set(ready[:2]) == {("a", "expected"), ("b", "expected")}
    assert set(ready[2:4]) == {("a", "compile"), ("b", "compile")}  # before anything else is measured
    assert ready[4:] == [("a", "fastdiff"), ("a", "eager"), ("b", "fastdiff"), ("b", "eager")]
    for row, result in zip("ab", results):
        assert (result["row"], result["against"]) == (row, "float64")
        assert result["left_out"] == ["fastdiff, other: RuntimeError: no other size"]
        assert all(len(engine["all"]) == 2 for engine in result["engines"].values())
        numbers = in_time.columns(result)
        assert 2 < numbers["fastdiff, ms"] < numbers["eager, ms"]
        assert numbers["launched, ms"] == 8
        assert numbers["first call, s"] == numbers["compile's, s"] == 2
        assert numbers["other size, s"] is None
        assert numbers["over compile"] == pytest.approx(numbers["compile, ms"] / numbers["fastdiff, ms"])
        assert numbers["20 steps over 20 calls"] == pytest.approx(0.05 / (20e-3 * numbers["fastdiff, ms"]))
        made = in_time.as_row(result, "cuda:0", "float16")
        assert made["name"] == f"{row} float16 cuda"
        assert set(made["seconds"]) == {"ours", "eager", "compile", "launched"}
        assert made["baseline"] in ("eager", "compile")
        text = in_time.table(result, "a card")
        assert "left out: fastdiff, other" in text
        assert "kernels of fastdiff: 1e+03 ms: norm 100%" in text


def test_what_does_not_fit_is_left_out_and_said(in_time, tmp_path, monkeypatch):
    log = tmp_path / "log"
    slow = "a compile,lacks compile"
    names = ["eager", "fastdiff", "compile"]
    first, second = in_time.measure(["a", "lacks"], names, commands(log, slow), in_time.Budget(40), rounds=1)
    assert first["left_out"][0].startswith("compile: not ready within")
    assert set(first["engines"]) == {"eager", "fastdiff"}
    assert "eager: MemoryError: out of memory" in second["left_out"]
    assert in_time.as_row(second, "cpu", "float32")["baseline"] is None
    (only,) = in_time.measure(["a"], ["fastdiff"], commands(log, "a fastdiff"), in_time.Budget(8), rounds=1)
    assert only["left_out"][0].startswith("fastdiff: not ready within")
    assert in_time.as_row(only, "cpu", "float32") is None
    monkeypatch.setattr(in_time, "LEAST", 1e9)
    (only,) = in_time.measure(["a"], ["fastdiff"], commands(log), in_time.Budget(30), rounds=1)
    assert only["left_out"] == ["all: the time was up"]
    monkeypatch.setattr(in_time, "LEAST", 0.0)
    with pytest.raises(RuntimeError, match="wrong: fastdiff: ValueError: differs by 1"):
        in_time.measure(["wrong"], ["fastdiff"], commands(log), in_time.Budget(60), rounds=1)


def test_a_worker_that_does_not_answer(tmp_path):
    worker = Worker(commands(tmp_path / "log", "a eager")("a", "eager"), wait=False)
    assert worker.prepared(0.2) == {"failed": "not ready within 0 s"}
    worker.close()
    worker = Worker(commands(tmp_path / "log")("a", "eager"))
    assert worker.answer["first"] == 2.0
    assert worker.ask("nothing")["failed"].startswith("KeyError")
    with pytest.raises(TimeoutError, match="no answer to 'turn' within"):
        worker.ask("turn", 0.0)
    worker.close()


@pytest.mark.slow
def test_the_whole_path_on_a_small_row(tmp_path):
    pytest.importorskip("diffusers", reason="belongs to the bench extra")
    file = tmp_path / "rows.json"
    found = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_models.py"), "--rows", "small", "--peers", "none", "--rounds", "2",
         "--dtype", "bfloat16", "--minutes", "8", "--json", str(file)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    (row,) = json.loads(file.read_text())["rows"]
    assert row["left_out"] == []
    assert row["name"] == "small bfloat16 cpu"
    for engine in row["engines"].values():
        assert 0 < engine["error"] <= engine["allowed"] < 0.05
        assert engine["first"] > 0
        assert engine["shares"]["kernels"][0]["share"] > 0
    assert row["columns"]["other size, s"] > 0
    assert 0.1 < row["columns"]["20 steps over 20 calls"] < 10
    assert "checked against float64" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "nothing"], "unknown row 'nothing'"),
        (["--device", "gpu"], "--device 'gpu' cannot be used"),
        (["--dtype", "int8"], "unknown --dtype 'int8'"),
        (["--dtype", "bfloat16", "--peers", "openvino"], "openvino is measured on the CPU in float32 only"),
    ],
)
def test_arguments_of_the_script(arguments, message):
    pytest.importorskip("diffusers", reason="belongs to the bench extra")
    command = [sys.executable, str(BENCHMARKS / "bench_models.py"), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith(message)


def test_shares_of_kernels():
    found = shares.summary(
        [("void cutlass::Kernel<cutlass_80_gemm>", 3e-3, 4), ("flash_fwd_kernel", 1e-3, 2), ("x", 1e-3, 1)]
    )
    assert found["kinds"] == pytest.approx({"product": 0.6, "attention": 0.2, "other": 0.2})
    assert found["seconds"] == pytest.approx(5e-3)
    assert [kernel["calls"] for kernel in found["kernels"]] == [4, 2, 1]
    a = torch.randn(256, 256)
    measured = shares.shares(lambda: a @ a)
    assert measured["kernels"][0]["kind"] == "product"
    assert measured["kernels"][0]["calls"] == 1
    assert sum(measured["kinds"].values()) == pytest.approx(1)


def test_peak_and_time_of_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    assert peak("cuda:0") == 123
    assert peak() > 1e6
    made = []

    @contextlib.contextmanager
    def timed(device):
        elapsed = timing.Elapsed()
        before = len(made)
        yield elapsed
        elapsed.seconds = 0.02 * (len(made) - before)

    monkeypatch.setattr("fastdiff.bench.turns.timed", timed)
    assert seconds_a_call(lambda: made.append(1), "cuda") == pytest.approx(0.02)
    assert len(made) == 1 + 15  # one that is not timed, and 0.3 s


def test_operators_inside_graphs(monkeypatch, capsys):
    """Each form is recorded with its own implementation, and a graph has ten calls."""
    recorded = []

    def record(function, device):
        recorded.append((function.func, choice.current(), str(device)))

        def replay():
            for _ in range(gpu.CALLS):
                function()

        return replay

    monkeypatch.setattr(torch, "compile", lambda function: function)
    case = of("group_norm_silu", "smallest")[0]
    found = gpu.time_case(case, rounds=2, device="cpu", backend="auto", record=record)
    assert [(backend, device) for _, backend, device in recorded] == [
        ("auto", "cpu"), ("reference", "cpu"), ("reference", "cpu"),
    ]  # fmt: skip
    assert set(found) == {"ours", "torch", "compile"}
    alone = timing.interleave({"": case.make}, rounds=2)[""].median
    assert all(0 < each.median < max(0.1, 100 * alone) for each in found.values())

    monkeypatch.setattr(gpu, "cases", lambda: iter([case, of("attention", "smallest")[0]]))
    rows = bench_gpu.measured(["group_norm_silu"], torch.device("cpu"), record_graph=record)
    assert [row["op"] for row in rows] == ["group_norm_silu"]
    assert rows[0]["ratio"] > 0
    with pytest.raises(ValueError, match="unknown op 'nothing'"):
        bench_gpu.measured(["nothing"], torch.device("cpu"))


def test_a_graph_is_recorded_after_a_warm_up(monkeypatch):
    log = []

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            log.append("waits")

    class Graph:
        def replay(self):
            log.append("replay")

    @contextlib.contextmanager
    def block(*arguments, **options):
        log.append("begin")
        yield
        log.append("end")

    for name, value in dict(Stream=Stream, CUDAGraph=Graph, stream=block, graph=block).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    replay = gpu.recorded(lambda: log.append("call"), "cuda:0")
    replay()
    warm, calls = ["call"] * gpu.WARM, ["call"] * gpu.CALLS
    assert log == ["waits", "begin", *warm, "end", "waits", "begin", *calls, "end", "replay"]
