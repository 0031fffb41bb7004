"""Times are estimated over all settings together: as many calls of a network take as long with every solver."""

import random

import numpy as np
import pytest
import toy

import fastdiff
from fastdiff.profiling import load
from fastdiff.profiling.costs import Run, estimate

CALL, OVERHEAD = 0.02, 0.004


def runs_of(settings, rounds=3, noise=0.01, busy=lambda setting, number: 1.0, others=None):
    """Runs of (solver, calls, kind) whose truth is known."""
    rng = np.random.default_rng(0)
    return [
        Run(setting, setting[2], setting[0], (("alone", setting[1]),),
            (setting[1] * CALL * (3.0 if setting[2] == "dear" else 1.0) + OVERHEAD)
            * (1 + noise * rng.standard_normal()) * busy(setting, number),
            None if others is None else others(setting, number))
        for number in range(rounds) for setting in settings
    ]  # fmt: skip


SETTINGS = [(solver, calls, kind) for solver in ("ddim", "unipc-3") for calls in (5, 8, 12, 20, 35)
            for kind in ("cheap", "dear")]  # fmt: skip


def truth(setting):
    return setting[1] * CALL * (3.0 if setting[2] == "dear" else 1.0) + OVERHEAD


def test_costs_of_quiet_runs():
    found = estimate(runs_of(SETTINGS))
    for setting in SETTINGS:
        time = found.times[setting]
        assert time.seconds == pytest.approx(truth(setting), rel=0.02)
        assert not time.own
        assert abs(time.seconds / truth(setting) - 1) < 4 * time.noise
    assert found.spread < 0.02
    assert found.busy == 0


def test_a_busy_phase_is_no_property_of_the_setting_that_it_met():
    """Half of all runs take up to three times as long, and all three of one setting do."""
    order = random.Random(1)
    slow = {(setting, number): order.choice([1.0, 1.0, 1.7, 3.0]) for setting in SETTINGS for number in range(3)}
    slow |= {(("unipc-3", 35, "cheap"), number): 2.4 for number in range(3)}
    busy = lambda setting, number: slow[setting, number]  # noqa: E731
    found = estimate(runs_of(SETTINGS, busy=busy, others=lambda *of: 1.0 if busy(*of) > 1 else 0.0))
    for setting in SETTINGS:
        assert found.times[setting].seconds == pytest.approx(truth(setting), rel=0.05)
    assert found.busy == pytest.approx(np.mean([factor > 1 for factor in slow.values()]))
    assert len(found.outliers) >= 0.8 * sum(factor > 1 for factor in slow.values())


def test_a_setting_that_is_truly_slower_keeps_its_time():
    found = estimate(runs_of(SETTINGS, busy=lambda setting, _: 1.5 if setting == ("ddim", 12, "cheap") else 1.0))
    time = found.times["ddim", 12, "cheap"]
    assert time.own
    assert time.seconds == pytest.approx(1.5 * truth(("ddim", 12, "cheap")), rel=0.03)
    assert sum(time.own for time in found.times.values()) == 1


def test_calls_that_reuse_and_guided_calls_have_costs_of_their_own():
    cost = {"alone": 0.01, "guided": 0.019, "reused": 0.004}
    counts = [(("alone", 10.0),), (("guided", 10.0),), (("guided", 5.0), ("alone", 5.0)),
              (("alone", 5.0), ("reused", 5.0))]  # fmt: skip
    runs = [Run(k, "net", "ddim", of, sum(cost[name] * n for name, n in of)) for k, of in enumerate(counts)] * 3
    found = estimate(runs)
    for k, of in enumerate(counts):
        assert found.times[k].seconds == pytest.approx(sum(cost[name] * n for name, n in of), rel=0.01)


def test_a_sweep_by_a_clock_that_lies(tmp_path, monkeypatch):
    """The machine is busy whenever the first three rounds come to one setting; it is timed again."""
    clock = toy.Clock(monkeypatch)

    def on_progress(what, done, total):
        clock.busy = "dpmpp-2m, 35" in what and what.startswith("round")

    found = fastdiff.profile(
        toy.subject, solvers=["ddim", "dpmpp-2m"], steps=[5, 8, 35], samples=12, reference_steps=40, out=tmp_path,
        on_progress=on_progress,
    )  # fmt: skip
    seconds = {row["label"]: row["seconds"]["median"] for row in found.rows}
    assert sum(busy for _, busy in clock.timed) == 3
    for calls in (5, 8, 35):
        assert seconds[f"ddim, {calls} steps"] == pytest.approx(seconds[f"dpmpp-2m, {calls} steps"], rel=0.01)
    assert seconds["ddim, 35 steps"] == pytest.approx(35 * 0.01, rel=0.01)
    assert found.facts["times"]["again"] == 3
    assert found.facts["times"]["outliers"] == 0


def test_calls_are_told_from_overheads():
    """By steps of two numbers; with one number all is taken for calls."""
    found = estimate(runs_of([("ddim", 3, "cheap"), ("ddim", 9, "cheap")], noise=0.0))
    assert found.parts["cheap", "alone"] == pytest.approx(CALL, rel=0.02)
    assert found.parts["ddim"] == pytest.approx(OVERHEAD, rel=0.2)
    alone = estimate(runs_of([("ddim", 8, "cheap"), ("ddim", 8, "dear")], noise=0.0))
    assert alone.parts["cheap", "alone"] == pytest.approx(CALL + OVERHEAD / 8, rel=0.02)


def test_others_are_seen(monkeypatch):
    """By what the kernel counts: two cores busy for as long as the block, of which this process used one."""
    now = [0.0]
    monkeypatch.setattr(load.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(load.time, "process_time", lambda: now[0])
    monkeypatch.setattr(load, "_busy", lambda: 2 * now[0])
    with load.watched() as found:
        now[0] = 3.0
    assert found.others == pytest.approx(1.0)
    assert load.is_busy(found.others)
    assert not load.is_busy(None)
    with load.watched() as short:
        now[0] += 0.01
    assert short.others is None


def test_where_the_kernel_counts_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "STAT", tmp_path / "nothing")
    with load.watched() as found:
        pass
    assert found.others is None
