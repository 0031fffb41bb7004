"""The scheduler alone: whatever workers do, each unit is made once or given up, and it costs little."""

import heapq
import random
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.distributed.scheduler import Limits, Scheduler


@settings(max_examples=200, deadline=None)
@given(
    units=st.integers(1, 12),
    before=st.sets(st.integers(0, 11)),
    workers=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    trouble=st.sampled_from([0.0, 0.2, 0.6]),
)
def test_every_unit_is_made_once_or_given_up(units, before, workers, seed, trouble):
    """Workers end units in any order, fail and die at random."""
    rng = random.Random(seed)
    scheduler = Scheduler(units, {unit for unit in before if unit < units}, Limits(starts=10**9))
    made, running, now = [], {}, 0.0
    names = iter(range(10**6))
    for _ in range(workers):
        scheduler.ready(str(next(names)), now)
    for _ in range(10_000):
        for worker, unit in scheduler.orders(now):
            assert worker not in running
            assert unit not in scheduler.finished
            assert unit not in scheduler.given_up
            running[worker] = unit
            assert list(running.values()).count(unit) <= scheduler.limits.copies
        if scheduler.over:
            break
        now += rng.random()
        worker = rng.choice(list(running))
        unit = running.pop(worker)
        if rng.random() >= trouble:
            if scheduler.done(worker, now):
                made.append(unit)
        elif rng.random() < 0.5:
            scheduler.failed(worker, now, "failed")
        else:
            scheduler.died(worker, "died")
            scheduler.ready(str(next(names)), now)
    assert scheduler.over
    assert sorted(made) == sorted(scheduler.finished - before)
    assert len(set(made)) == len(made)
    assert not scheduler.finished & scheduler.given_up.keys()
    if trouble == 0:
        assert not scheduler.given_up


def test_a_unit_that_fails_is_tried_again_last():
    scheduler = Scheduler(3, limits=Limits(failures=2))
    scheduler.ready("a", 0)
    order = []
    for now in range(4):
        ((_, unit),) = scheduler.orders(now)
        order.append(unit)
        if unit == 0:
            scheduler.failed("a", now, "bad weather")
        else:
            scheduler.done("a", now)
    assert order == [0, 1, 2, 0]
    assert scheduler.over
    assert scheduler.given_up == {0: "bad weather (2 failures, 0 deaths)"}


def test_a_unit_that_takes_too_long_is_made_twice_and_the_first_counts():
    scheduler = Scheduler(3, limits=Limits(late=3))
    scheduler.ready("a", 0)
    scheduler.ready("b", 0)
    assert scheduler.orders(0) == [("a", 0), ("b", 1)]
    assert scheduler.done("b", 1)
    assert scheduler.orders(1) == [("b", 2)]
    assert scheduler.done("b", 2)
    assert scheduler.orders(2.5) == []  # not late yet
    assert scheduler.orders(3.5) == [("b", 0)]
    assert scheduler.done("b", 4.5)
    assert scheduler.over
    assert not scheduler.done("a", 5)
    assert scheduler.progress(5).copies == 1


def test_a_copy_that_fails_leaves_the_unit_to_the_other():
    scheduler = Scheduler(2, limits=Limits(failures=1, late=1))
    scheduler.ready("a", 0)
    scheduler.ready("b", 0)
    scheduler.orders(0)
    scheduler.done("b", 1)
    assert scheduler.orders(5) == [("b", 0)]
    scheduler.failed("b", 6, "no memory")
    assert not scheduler.given_up
    assert scheduler.done("a", 7)
    assert scheduler.over


def test_workers_that_die_before_they_work_end_it():
    scheduler = Scheduler(2, limits=Limits(starts=3))
    for name in "abc":
        assert not scheduler.hopeless
        scheduler.died(name, "no such module")
    assert scheduler.hopeless == "3 workers in a row died before they did anything"


def test_units_that_all_fail_end_it():
    scheduler = Scheduler(100, limits=Limits(failures=1, starts=4))
    scheduler.ready("a", 0)
    for _ in range(4):
        assert not scheduler.hopeless
        scheduler.orders(0)
        scheduler.failed("a", 1, "wrong")
    assert scheduler.hopeless == "the first 4 units all failed"


def test_a_worker_that_needs_too_long_is_named():
    scheduler = Scheduler(2, limits=Limits(unit_seconds=10))
    scheduler.ready("a", 0)
    scheduler.orders(0)
    assert scheduler.overdue(10) == []
    assert scheduler.overdue(10.5) == ["a"]


def test_time_left_is_from_the_units_of_this_run():
    scheduler = Scheduler(10, {0, 1})
    scheduler.ready("a", 100)
    assert scheduler.progress(100).left is None
    scheduler.orders(100)
    scheduler.done("a", 104)
    progress = scheduler.progress(104)
    assert (progress.done, progress.made, progress.left) == (3, 1, 28.0)


def simulate(workers, units, seed=0):
    """Seconds of the processor for all decisions, and how long the work took on the simulated clock."""
    rng = random.Random(seed)
    scheduler = Scheduler(units)
    events = []
    for name in range(workers):
        scheduler.ready(str(name), 0.0)
    now, started = 0.0, time.process_time()
    while not scheduler.over:
        for worker, _ in scheduler.orders(now):
            slow = 20 if rng.random() < 0.001 else 1
            heapq.heappush(events, (now + slow * rng.uniform(0.8, 1.2), worker))
        now, worker = heapq.heappop(events)
        scheduler.done(worker, now)
    return time.process_time() - started, now


@pytest.mark.parametrize("workers", [1, 1000])
def test_a_thousand_workers_cost_the_driver_little(workers):
    units = 10_000
    tracemalloc.start()
    simulate(workers, 1_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6
    seconds, took = simulate(workers, units)
    assert seconds / units < 1e-4  # 10,000 units a second
    ideal = units / workers
    assert took < 1.35 * ideal + 6  # one in a thousand takes twenty times as long: made again, it holds nothing up
