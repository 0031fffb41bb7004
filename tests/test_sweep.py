"""`fastdiff bench ops --sweep`: checked before it is timed, within a budget, whole or not at all. No GPU: a stand-in
for the timer and the clock; what compiles are processes that do something else."""

import math
import multiprocessing
from functools import partial
from pathlib import Path

import pytest
import torch
from warming_tasks import do

import fastdiff
from fastdiff.bench import cases, measured, sweep, sweep_cases, warming
from fastdiff.bench.measured import Measured, MeasuredCase, Time
from fastdiff.cli import bench_sweep
from fastdiff.ops import deciding
from fastdiff.runtime import tuning
from fastdiff.runtime.candidates import TORCH, Candidate

CPU = torch.device("cpu")
linear = fastdiff.ops.linear


class Timer:
    """Takes `price` seconds for a measurement, and says that a call took as many microseconds as there were calls."""

    device_type = "cpu"

    def __init__(self, price=0.0, breaks_at=math.inf, error=KeyboardInterrupt):
        self.count, self.now, self.price, self.breaks_at, self.error = 0, 0.0, price, breaks_at, error

    def __call__(self, run, device):
        self.count += 1
        if self.count >= self.breaks_at:
            raise self.error
        run()
        self.now += self.price
        return self.count * 1e-6

    def clock(self):
        return self.now


@pytest.fixture
def small(monkeypatch):
    """Two cases of linear with four candidates, one of them wrong, and a further one."""
    made = [cases.of("linear", "smallest")[i] for i in (0, 1)]
    monkeypatch.setattr(sweep, "cases", lambda: [("", case) for case in made])
    right = linear.reference
    found = [
        Candidate("triton", right), Candidate("triton wrong", lambda a: right(a) + 1),
        Candidate("torch channels-last", right), Candidate(TORCH, right),
    ]  # fmt: skip
    monkeypatch.setitem(deciding.FINDERS, "linear", lambda op, a: deciding.Found(found, {"rows": a.x.shape[1]}))
    monkeypatch.setitem(sweep_cases.OTHERS, "linear", lambda op, a: [Candidate("triton 64x64/4/3", right), found[0]])
    monkeypatch.setattr(sweep, "ceilings", lambda device, timer: {"copy": 1e12})
    sweep._problem.cache_clear()
    yield made
    sweep._problem.cache_clear()


def run(timer, warm=lambda *args, **options: {}, minutes=3.0, ops=()):
    said = []
    found = sweep.run(ops, CPU, minutes=minutes, timer=timer, clock=timer.clock, warm=warm, say=said.append)
    return found, "\n".join(said)


def test_every_candidate_is_checked_then_timed(small):
    timer = Timer()
    found, said = run(timer)
    assert "2 cases, 10 candidates" in said
    assert (found.complete, found.ceilings, len(found.cases)) == (True, {"copy": 1e12}, 2)
    for case in found.cases:
        assert (case.op, case.features, case.graph) == ("linear", {"rows": 2}, True)
        assert set(case.times) == {"triton", "torch channels-last", TORCH, "triton 64x64/4/3"}
        assert all(time.fault is None and time.allowed > 0 for time in case.times.values())
        assert "its results are wrong" in case.failed["triton wrong"]
    assert timer.count == 8  # what is wrong was not timed
    # What a call chooses among comes first in all cases.
    assert found.cases[1].times[TORCH].microseconds < found.cases[0].times["triton 64x64/4/3"].microseconds


def test_what_did_not_compile_is_not_tried(small):
    given = []

    def warm(do, tasks, *, jobs, seconds):
        given.extend(tasks)
        assert jobs >= 1
        assert seconds == 90
        return {0: "it hung for 30 s", len(tasks) - 1: warming.NOT_REACHED}

    found, said = run(Timer(), warm)
    assert given[0] == (0, "triton", "cpu")
    assert {name for _, name, _ in given} == {
        "triton",
        "triton wrong",
        "triton 64x64/4/3",
    }  # PyTorch's need no compiler
    assert found.cases[0].failed["triton"] == "it hung for 30 s"
    assert found.cases[1].failed["triton 64x64/4/3"] == warming.NOT_REACHED
    assert "1 candidates were not reached" in said
    assert not found.complete


def test_the_budget_holds(small):
    timer = Timer(price=25.0)
    found, said = run(timer, minutes=1.0)
    assert timer.count == 3
    assert not found.complete
    assert "6 candidates were not reached in 1 minutes" in said
    assert [set(case.times) for case in found.cases] == [{"triton", "torch channels-last", TORCH}]


def test_one_operator(small):
    assert run(Timer(), ops=["attention"])[0].cases == []
    assert len(run(Timer(), ops=["linear"])[0].cases) == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "the device is lost"),
    ],
)
def test_what_is_there_is_kept(error, reason, small):
    found, said = run(Timer(breaks_at=5, error=error))
    assert reason in said
    assert "what is there by now is kept" in said
    assert not found.complete
    assert [len(case.times) for case in found.cases] == [3, 1]


def test_a_candidate_that_fails_costs_no_other(small):
    found, _ = run(Timer(breaks_at=8, error=RuntimeError("out of resource: shared memory")))
    assert found.cases[1].failed["triton 64x64/4/3"] == "RuntimeError: out of resource: shared memory"
    assert found.complete


def test_ceilings():
    class Fixed(Timer):
        def __call__(self, run, device):
            run()
            return 1e-3

    found = sweep.ceilings(CPU, Fixed(), numbers=1000, side=16)
    assert found == {"copy": pytest.approx(4e6), "product": pytest.approx(2 * 16**3 * 1e3), "launch": 1e-3}


def test_a_task_of_a_process_runs_its_candidate(small):
    sweep.compile_one((1, "triton wrong", "cpu"))
    with pytest.raises(StopIteration):
        sweep.compile_one((1, "absent", "cpu"))


@pytest.mark.parametrize("index", range(0, len(sweep_cases.cases()), 3))
def test_cases_of_a_sweep_are_arguments_that_the_operators_take(index):
    part, case = sweep_cases.cases()[index]
    op = fastdiff.ops.OPS[case.op]
    a = op.arguments(**case.make(device="meta"))
    op.check(a)
    assert op.first(a).device.type == "meta"
    assert case.dtype == torch.float16
    assert part in ("", "dq", "dkv")


# ---- processes ----


def test_processes_end_what_hangs_or_breaks(tmp_path):
    path = str(tmp_path / "done")
    kinds = ["works", "raises", "hangs", "lost", "ends", "works", "works"]
    failed = warming.warm(do, [(kind, path) for kind in kinds], jobs=2, seconds=300, each=3)
    assert failed == {
        1: "ValueError: no kernel image",
        2: "it hung for 3 s",
        3: "RuntimeError: CUDA error: an illegal memory access was encountered",
        4: "its process ended with status 7",
    }
    assert Path(path).read_text().count("works") == 3
    assert not multiprocessing.active_children()


def test_tasks_beyond_the_budget_are_named(tmp_path):
    failed = warming.warm(do, [("hangs", "")] * 3, jobs=1, seconds=0.5)
    assert failed == dict.fromkeys(range(3), warming.NOT_REACHED)
    assert not multiprocessing.active_children()


# ---- the command, and the file ----


def example():
    times = {"triton": Time(1.5, 1e-4, 2e-4), TORCH: Time(2.0)}
    case = MeasuredCase("linear", (1, 2, 8, 8), "float16", "a detail", features={"rows": 2}, times=times)
    case.failed["other"] = 'says "no"'
    return Measured(
        "a card", "sm_90", 132, 1 << 20, "2026-01-02", "a test", {"torch": "2.6"}, {"copy": 1e12}, True, [case]
    )


def test_a_file_gives_back_what_was_saved(tmp_path):
    path = tmp_path / "measured.json"
    measured.save(path, example())
    assert measured.load(path) == example()
    assert '   "triton": [1.5, 0.0001, 0.0002],\n' in path.read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"format": 1', '"format": 2', "not of format 1"),
        ('"op": "linear"', '"op": "matmul"', "no op 'matmul'"),
        ('"dtype": "float16"', '"dtype": "int8"', "unknown dtype"),
        ("[1.5, 0.0001, 0.0002]", "[0.0, 0.0001, 0.0002]", "triton has"),
        ("[1.5, 0.0001, 0.0002]", "[1.5, NaN, 0.0002]", "triton has"),
        ("[1.5, 0.0001, 0.0002]", '["1.5"]', "triton has"),
        ('"device": "a card"', '"device": 3', "device is 3, expected text"),
        ('"multiprocessors": 132', '"multiprocessors": "132"', "multiprocessors is '132', expected a whole number"),
        ('"complete": true', '"complete": 1', "complete is 1, expected true or false"),
        ('"graph": true', '"graph": []', r"float16 a detail: graph is \[\], expected true or false"),
        ('{"rows": 2}', '{"rows": "2"}', "features are {'rows': '2'}, expected whole numbers"),
        ('{"rows": 2}', "[2]", r"features are \[2\], expected whole numbers"),
        ("]}\n", "", "holds no measurements: Expecting"),
        ('"date"', '"day"', "day"),
        ('{\n "format"', '[{\n "format"', "holds no measurements"),
    ],
)
def test_other_files_are_refused_by_name(old, new, said, tmp_path):
    path = tmp_path / "measured.json"
    measured.save(path, example())
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=said) as error:
        measured.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_features_that_tables_are_made_of_must_be_there(tmp_path):
    path, found = tmp_path / "measured.json", example()
    found.cases[0].op = "attention"
    measured.save(path, found)
    with pytest.raises(ValueError, match=r"features are \{'rows': 2\}, expected whole numbers of dim, queries, keys"):
        measured.load(path)


def test_the_command_writes_the_file(tmp_path, small, monkeypatch, capsys):
    out = tmp_path / "new" / "measured.json"
    monkeypatch.setattr(tuning.tuner, "timer", Timer())
    monkeypatch.setattr(sweep, "run", partial(sweep.run, warm=lambda *args, **options: {}))
    bench_sweep.run(["linear"], CPU, str(out), None)
    assert len(measured.load(out).cases) == 2
    assert "triton 1.0" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["measured.json"]


@pytest.mark.parametrize("breaks_at", [4, 5, 8])
def test_a_process_that_is_ended_leaves_what_it_measured(breaks_at, tmp_path, small, monkeypatch):
    """As at the end of a machine's time: no more code runs than what handles a signal."""
    out = tmp_path / "measured.json"
    monkeypatch.setattr(tuning.tuner, "timer", Timer(breaks_at=breaks_at, error=SystemExit(143)))
    monkeypatch.setattr(sweep, "run", partial(sweep.run, warm=lambda *args, **options: {}))
    with pytest.raises(SystemExit):
        bench_sweep.run(["linear"], CPU, str(out), None)
    found = measured.load(out)
    assert not found.complete
    assert [len(case.times) for case in found.cases] == {4: [3], 5: [3], 8: [4, 3]}[breaks_at]
    assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]
    assert found.ceilings == {"copy": 1e12}


@pytest.mark.parametrize(
    ("only", "out", "minutes", "said"),
    [
        (["atention"], "a.json", None, "attention"),
        ([], None, None, "--sweep needs --out"),
        ([], "a.json", 0.0, "--minutes must be positive"),
        ([], "a.json", 1.0, "--sweep needs --device cuda, got cpu"),
    ],
)
def test_what_the_command_refuses(only, out, minutes, said):
    with pytest.raises(ValueError, match=said):
        bench_sweep.run(only, CPU, out, minutes)
