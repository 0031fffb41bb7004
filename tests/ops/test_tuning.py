"""Choices by timing: checked, within a budget, kept in a file; with a stand-in for the device and the clock."""

import threading

import pytest
import torch
from stand_in_device import Device

from fastdiff.runtime import candidates, graphs
from fastdiff.runtime.candidates import Row

pytestmark = pytest.mark.usefixtures("times_file")


def said():
    (line,) = candidates.lines()
    return line


def test_the_quickest_is_taken_and_the_times_are_said():
    device = Device(ours=3e-6, torch=2e-6, theirs=1e-6)
    found = device.tuner().decide(device.problem())
    assert (found.name, found.settled) == ("theirs", True)
    assert device.timed == ["ours", "torch", "theirs"]
    assert "theirs, timed in 0.00 s; theirs 1.0 us, torch 2.0 us, ours 3.0 us" in said()


def test_the_preferred_one_stays_where_none_is_clearly_quicker():
    device = Device(ours=1e-6, torch=0.98e-6)
    assert device.tuner().decide(device.problem()).name == "ours"


def test_what_is_chosen_gives_the_results(monkeypatch):
    device = Device(ours=1.0, torch=2.0)
    problem = device.problem()
    assert device.tuner().decide(problem).run(torch.ones(3)).equal(torch.sin(torch.ones(3)))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda x: torch.sin(x) + 1e-4, "its results are wrong"),
        (lambda x: torch.sin(x).where(torch.arange(64) != 63, 0.7), "its results are wrong"),
        (lambda x: torch.sin(x).where(torch.arange(64) > 0, torch.nan), "not finite"),
        (lambda x: torch.full_like(x, torch.nan), "not finite"),
        (lambda x: torch.sin(x)[:32], "gives (32,)"),
        (lambda x: torch.sin(x).double(), "torch.float64"),
        (lambda x: (torch.sin(x), torch.sin(x)), "2 tensors, not 1"),
    ],
)
def test_a_wrong_candidate_is_dropped_with_one_warning(wrong, reason, times_file):
    device = Device(wrong=1e-6, torch=2e-6)
    tuner = device.tuner()
    with pytest.warns(UserWarning, match="wrong is not taken") as caught:
        assert tuner.decide(device.problem(wrong=wrong)).name == "torch"
    assert len(caught) == 1
    assert reason in said()
    assert "wrong" not in device.timed
    # Another process does not try it again.
    device.ran.clear()
    assert device.tuner().decide(device.problem(wrong=wrong)).name == "torch"
    assert device.ran == []
    assert reason in said()


@pytest.mark.parametrize("error", [RuntimeError("no kernel image"), torch.OutOfMemoryError("spent"), ImportError("cc")])
def test_a_candidate_that_raises_is_dropped_with_the_reason(error):
    def fails(x):
        raise error

    device = Device(ours=1e-6, torch=2e-6)
    assert device.tuner().decide(device.problem(ours=fails)).name == "torch"
    assert f"not ours: {type(error).__name__}: {error}" in said()


def test_torch_is_the_last_resort():
    def fails(x):
        raise RuntimeError("no")

    device = Device(ours=1e-6, torch=2e-6, theirs=3e-6)
    assert device.tuner().decide(device.problem(ours=fails, torch=fails, theirs=fails)).name == "torch"


def test_a_lost_device_is_no_reason_to_go_on():
    def fails(x):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device = Device(ours=1e-6, torch=2e-6)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        device.tuner().decide(device.problem(ours=fails))
    assert graphs.lock.acquire(blocking=False)
    graphs.lock.release()


def test_what_a_capture_forbids_drops_a_candidate_only():
    class Forbidding(Device):
        def __call__(self, run, device):
            seconds = super().__call__(run, device)
            if self.timed[-1] == "ours":
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            return seconds

    device = Forbidding(ours=1e-6, torch=2e-6)
    assert device.tuner().decide(device.problem()).name == "torch"


def test_results_that_cannot_be_checked_are_not_timed():
    device = Device(ours=1e-6, torch=2e-6)
    problem = device.problem()
    problem.reference = lambda x: torch.full_like(x, torch.inf)
    found = device.tuner().decide(problem)
    assert (found.name, device.timed) == ("ours", [])
    assert "the default, not measured (results are not finite" in said()

    def spent(x):
        raise torch.OutOfMemoryError("of 80 GiB")

    problem.oracle = spent
    assert device.tuner().decide(problem).name == "ours"
    assert "could not be checked: OutOfMemoryError: of 80 GiB" in said()


def test_without_an_oracle_candidates_are_checked_against_the_first():
    device = Device(first=2e-6, second=1e-6, third=0.5e-6)
    problem = device.problem(second=lambda x: torch.sin(x) * (1 + 1e-7), third=lambda x: torch.sin(x) + 1e-3)
    problem.reference = problem.oracle = None
    with pytest.warns(UserWarning, match="third is not taken"):
        assert device.tuner().decide(problem).name == "second"


# ---- the budget ----


def test_a_shape_has_its_budget_and_the_next_process_goes_on(times_file):
    device = Device(price=1.5, ours=3e-6, torch=2e-6, theirs=1e-6, last=4e-6)
    found = device.tuner().decide(device.problem())
    assert device.timed == ["ours", "torch"]
    assert (found.name, found.settled) == ("torch", True)
    assert "timed in part: the budget of 2 s a shape and 30 s a process is spent" in said()
    assert device.tuner().decide(device.problem()).name == "theirs"
    assert device.timed == ["ours", "torch", "theirs", "last"]
    device.tuner().decide(device.problem())
    assert len(device.timed) == 4
    assert "timed before" in said()


def test_a_process_has_its_budget():
    device = Device(price=2.5, ours=3e-6, torch=2e-6)
    tuner = device.tuner()
    for number in range(20):
        found = tuner.decide(device.problem(f"shape{number}"))
    assert len(device.timed) == 12  # 30 s
    assert (found.name, found.settled) == ("ours", True)
    assert "the default, not measured (the budget of 2 s a shape and 30 s a process is spent)" in candidates.lines()[-1]
    assert tuner.spent == 30


# ---- the table, and the settings ----

ROW = Row("sin", "sm_90", "half", (), "theirs", "theirs 1 us", "a device")


@pytest.mark.parametrize(
    ("setting", "row", "nearest", "chosen", "timed", "why"),
    [
        ("0", None, None, "ours", 0, "the default, not measured (FASTDIFF_TUNE=0)"),
        ("0", ROW, None, "theirs", 0, "from the table (theirs 1 us; a device)"),
        ("0", None, ROW, "theirs", 0, "from the table of sm_90, not measured here (FASTDIFF_TUNE=0)"),
        ("1", None, None, "torch", 3, "timed in"),
        ("1", ROW, None, "theirs", 0, "from the table (theirs 1 us; a device)"),
        ("1", ROW._replace(candidate="absent"), None, "torch", 3, "timed in"),
        ("1", None, ROW, "torch", 3, "timed in"),
        ("all", ROW, None, "torch", 3, "timed in"),
    ],
)
def test_settings(setting, row, nearest, chosen, timed, why, monkeypatch):
    monkeypatch.setenv("FASTDIFF_TUNE", setting)
    device = Device(ours=3e-6, torch=1e-6, theirs=2e-6)
    problem = device.problem()
    problem.row, problem.nearest = row, nearest
    found = device.tuner().decide(problem)
    assert (found.name, found.settled, len(device.timed)) == (chosen, True, timed)
    assert why in said()


def test_all_times_again_once_in_a_process(monkeypatch):
    device = Device(ours=3e-6, torch=1e-6)
    device.tuner().decide(device.problem())
    monkeypatch.setenv("FASTDIFF_TUNE", "all")
    device.seconds |= {"ours": 0.5e-6}
    tuner = device.tuner()
    assert tuner.decide(device.problem()).name == "ours"
    assert tuner.decide(device.problem()).name == "ours"
    assert len(device.timed) == 4


def test_an_unknown_setting(monkeypatch):
    monkeypatch.setenv("FASTDIFF_TUNE", "2")
    device = Device(ours=3e-6, torch=1e-6)
    with pytest.raises(ValueError, match="FASTDIFF_TUNE must be 0, 1 or all, got '2'"):
        device.tuner().decide(device.problem())


def test_one_candidate_is_not_timed():
    device = Device(torch=1e-6)
    assert device.tuner().decide(device.problem()).settled
    assert (device.timed, "the only one" in said()) == ([], True)


# ---- when nothing may be timed ----


@pytest.mark.parametrize("what", ["capture", "compile", "device"])
def test_a_shape_stays_open_while_nothing_may_be_timed(what, monkeypatch):
    device = Device(ours=2e-6, torch=1e-6)
    tuner = device.tuner()
    with monkeypatch.context() as patched:
        if what == "capture":
            patched.setattr(graphs, "capturing", lambda: True)
        elif what == "compile":
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
        else:
            patched.setattr(Device, "device_type", "cuda")
        found = tuner.decide(device.problem())
        assert (found.name, found.settled, device.ran) == ("ours", False, [])
        assert "timed at a later call" in said()
    found = tuner.decide(device.problem())
    assert (found.name, found.settled) == ("torch", True)


def test_a_shape_stays_open_while_another_thread_captures():
    device, holds, done = Device(ours=2e-6, torch=1e-6), threading.Event(), threading.Event()

    def captures():
        with graphs.lock:
            holds.set()
            assert done.wait(10)

    thread = threading.Thread(target=captures)
    thread.start()
    assert holds.wait(10)
    tuner = device.tuner()
    found = tuner.decide(device.problem())
    done.set()
    thread.join()
    assert (found.name, found.settled, device.ran) == ("ours", False, [])
    assert tuner.decide(device.problem()).name == "torch"


def test_threads_time_a_shape_once():
    device, started = Device(ours=2e-6, torch=1e-6), threading.Barrier(8)
    tuner, found = device.tuner(), []

    def asks():
        started.wait(10)
        found.append(tuner.decide(device.problem()))

    threads = [threading.Thread(target=asks) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(device.timed) == ["ours", "torch"]
    assert {(c.name, c.settled) for c in found} <= {("torch", True), ("ours", False)}
    assert tuner.decide(device.problem()).name == "torch"
