"""`bench models` within a time, `bench ops` inside graphs: what a GPU does is done by the CPU or a stand-in."""

import contextlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff.bench import gpu, shares, suites, timing
from fastdiff.bench.cases import of
from fastdiff.bench.turns import Worker, peak, seconds_a_call
from fastdiff.cli import bench_gpu
from fastdiff.runtime import choice

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORKER = """
import sys, time
sys.path[:] = [entry for entry in sys.path if entry]
import fastdiff.bench.turns as turns

def prepare():
    if sys.argv[1] == "slow":
        time.sleep(600)
    return (lambda: None), {"first": 2.0}

turns.LEAST = 0.0
turns.serve(prepare, more={"loop": lambda: {"seconds": 0.05}})
"""


class Machine:
    """A stand-in for processes and the clock. takes: seconds by (row, engine), of its preparation; fails: answers."""

    def __init__(self, takes=None, fails=None):
        self.now, self.log, self.running = 0.0, [], set()
        self.takes, self.fails = takes or {}, fails or {}

    def worker(self, command, wait=True):
        assert not wait
        return self.Process(self, tuple(command))

    class Process:
        def __init__(self, machine, command):
            self.machine, self.command = machine, command
            self.ready = machine.now + machine.takes.get(command, 10.0)
            machine.running.add(command)

        def prepared(self, seconds):
            if self.ready - self.machine.now > seconds:
                self.machine.now += seconds
                return {"failed": f"not ready within {seconds:.0f} s"}
            self.machine.now = max(self.machine.now, self.ready)
            self.machine.log.append(("ready", *self.command))
            self.answer = {"against": "float64"} if self.command[1] == "expected" else {
                "first": 2.0, "error": 1e-3, "allowed": 2e-3, **self.machine.fails.get(self.command, {}),
            }  # fmt: skip
            return self.answer

        def ask(self, what, seconds):
            assert seconds > 0
            self.machine.now += 1.0
            self.machine.log.append((what, *self.command))
            if (*self.command, what) in self.machine.fails:
                raise TimeoutError("no answer")
            milliseconds = {"fastdiff": 2, "eager": 5, "compile": 4}[self.command[1]]
            return {
                "turn": {"seconds": 1e-3 * milliseconds, "peak": 100 * milliseconds},
                "launched": {"seconds": 0.008},
                "loop": {"seconds": 0.05},
                "other": {"failed": "RuntimeError: no other size"},
                "shares": {"seconds": 1.0, "kinds": {"norm": 1.0}, "kernels": []},
            }[what]

        def close(self):
            self.machine.running.discard(self.command)


@pytest.fixture
def in_time(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("models_in_time")


def measured(in_time, monkeypatch, machine, rows, seconds, names=("eager", "fastdiff", "compile")):
    monkeypatch.setattr(in_time, "Worker", machine.worker)
    monkeypatch.setattr(in_time.time, "monotonic", lambda: machine.now)
    budget = in_time.Budget(seconds, machine.now)
    found = in_time.measure(rows, names, lambda row, name: (row, name), budget, 2)
    assert machine.running == set()  # nothing is left at work
    assert machine.now <= seconds + 30
    return found


def test_rows_within_the_time(in_time, monkeypatch):
    machine = Machine()
    results = measured(in_time, monkeypatch, machine, ["a", "b"], 300.0)
    ready = [(row, name) for what, row, name in machine.log if what == "ready"]
    assert ready[:4] == [("a", "expected"), ("b", "expected"), ("a", "compile"), ("b", "compile")]
    assert ready[4:] == [("a", "fastdiff"), ("a", "eager"), ("b", "fastdiff"), ("b", "eager")]
    for row, result in zip("ab", results):
        assert (result["row"], result["against"]) == (row, "float64")
        assert result["left_out"] == ["fastdiff, other: RuntimeError: no other size"]
        assert all(len(engine["all"]) == 2 for engine in result["engines"].values())
        numbers = in_time.columns(result)
        expected = {
            "eager, ms": 5, "compile, ms": 4, "launched, ms": 8, "fastdiff, ms": 2, "over eager": 2.5,
            "over compile": 2, "error": 1e-3, "eager's": 1e-3, "first call, s": 2, "compile's, s": 2,
            "other size, s": None, "memory over eager": 0.4, "20 steps over 20 calls": 1.25,
        }  # fmt: skip
        assert numbers == {name: None if value is None else pytest.approx(value) for name, value in expected.items()}
        made = in_time.as_row(result, "cuda:0", "float16")
        assert made["name"] == f"{row} float16 cuda"
        assert set(made["seconds"]) == {"ours", "eager", "compile", "launched"}
        assert made["baseline"] == "compile"
        text = in_time.table(result, "a card")
        assert "left out: fastdiff, other" in text
        assert "kernels of fastdiff: 1e+03 ms: norm 100%" in text


def test_what_does_not_fit_is_left_out_and_said(in_time, monkeypatch):
    machine = Machine(
        {("a", "compile"): 1e9, ("lacks", "compile"): 50.0},
        {("lacks", "eager"): {"failed": "MemoryError: out of memory"}},
    )
    first, second = measured(in_time, monkeypatch, machine, ["a", "lacks"], 200.0)
    assert first["left_out"][0] == "compile: not ready within 100 s"
    assert set(first["engines"]) == {"eager", "fastdiff"}
    assert second["left_out"][0] == "eager: MemoryError: out of memory"
    assert in_time.as_row(second, "cpu", "float32")["baseline"] == "compile"

    (only,) = measured(in_time, monkeypatch, Machine({("a", "fastdiff"): 1e9}), ["a"], 60.0, ["fastdiff"])
    assert only["left_out"][0].startswith("fastdiff: not ready within")
    assert in_time.as_row(only, "cpu", "float32") is None
    first, second = measured(in_time, monkeypatch, Machine({("a", "fastdiff"): 170.0}), ["a", "b"], 200.0)
    assert second["left_out"] == ["all: the time was up"]
    (only,) = measured(in_time, monkeypatch, Machine(fails={("a", "eager", "turn"): 1}), ["a"], 200.0)
    assert only["left_out"] == ["the rest: no answer"]
    assert "median" in only["engines"]["fastdiff"]
    wrong = Machine(fails={("a", "fastdiff"): {"failed": "ValueError: differs by 1; not timed"}})
    with pytest.raises(RuntimeError, match="a: fastdiff: ValueError: differs by 1"):
        measured(in_time, monkeypatch, wrong, ["a"], 200.0)
    assert wrong.running == set()


def test_a_worker_that_does_not_answer():
    worker = Worker([sys.executable, "-c", WORKER, "slow"], wait=False)
    assert worker.prepared(0.2) == {"failed": "not ready within 0 s"}
    worker.close()
    worker = Worker([sys.executable, "-c", WORKER, "quick"])
    assert worker.answer["first"] == 2.0
    assert worker.ask("loop") == {"seconds": 0.05}
    assert worker.ask("nothing")["failed"].startswith("KeyError")
    with pytest.raises(TimeoutError, match="no answer to 'turn' within"):
        worker.ask("turn", 0.0)
    worker.close()


@pytest.mark.long
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
    kinds = {
        "aten::bmm": "product", "aten::mm": "product", "aten::native_group_norm": "norm", "Memcpy DtoD": "copy",
        "sm90_xmma_fprop_implicit_gemm": "convolution", "triton_poi_fused_add_3": "elementwise",
        "fastdiff::attention": "attention",
    }  # fmt: skip
    for name, expected in kinds.items():
        assert shares.kind(name) == expected, name
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


@pytest.mark.parametrize(
    ("row", "parameters"),
    [("sd15", 859_520_964), ("sdxl", 2_567_463_684), ("small", None), ("vae", 49_490_179),
     ("controlnet", 859_520_964 + 361_279_120), ("video", None), ("imagen-base", None)],
)  # fmt: skip
def test_rows_are_the_published_models(row, parameters, monkeypatch):
    """By their number of parameters, on a device without memory; their inputs have what a call needs."""
    pytest.importorskip("diffusers", reason="belongs to the bench extra")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    model_rows = importlib.import_module("model_rows")
    name, meta = suites.ROW_NAMES.get(row, row), torch.device("meta")
    with meta:
        network = model_rows.network(name)
    given = model_rows.inputs_of(name, model_rows.SIDES[name][0])
    inputs = model_rows.placed(given, meta, torch.float16)
    assert {x.dtype for x in inputs if x.is_floating_point()} == {torch.float16}
    if parameters is not None:
        assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(model_rows.Plain(network.half(), tuple(given))(*inputs)) == len(inputs[0])
    other = model_rows.other_inputs(row, meta, torch.float16)
    assert other[0].shape[:2] == inputs[0].shape[:2]
    assert other[0].shape != inputs[0].shape
