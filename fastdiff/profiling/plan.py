"""How much there is to do, how long it will take, and how many samples fit into the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastdiff.errors import SamplingError
from fastdiff.process.grids import make_grid
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.settings import Setting
from fastdiff.sampling import traced
from fastdiff.solvers import get_solver

ROUND = 16  # samples of a round, if the time allows
LEAST_ROUNDS = 3
MOST_ROUNDS = 64
PROBE_STEPS = 4
ADAPTIVE_CALLS = 60  # of a solver that does not say how many it makes
SHARE = 0.85  # of the time that is planned with; measures, the report and the machine's moods take the rest


@dataclass(frozen=True)
class Plan:
    """round_size: samples of a round. rounds: of every setting. seconds: that it is expected to take; 0 if unknown."""

    round_size: int
    rounds: int
    seconds: float

    @property
    def samples(self) -> int:
        """Of every setting."""
        return self.round_size * self.rounds


def evaluations(drawer: Drawer, setting: Setting) -> int:
    """Rows that the network will see for one sample; 0 for a setting that cannot run."""
    solver = get_solver(setting.solver)
    guidance = setting.cfg()
    if solver.adaptive:
        return ADAPTIVE_CALLS * (1 if guidance is None else 2)
    subject = drawer.subject
    try:
        times = make_grid(setting.grid or subject.schedule.grid or solver.grid, subject.schedule, setting.steps)  # type: ignore[union-attr,arg-type]
        program = traced(
            solver, subject.schedule, tuple(times.tolist()), subject.prediction, guidance, setting.clip(), False  # type: ignore[arg-type]
        )  # fmt: skip
    except (ValueError, TypeError, ZeroDivisionError, NotImplementedError):
        return 0  # its row will say why
    return sum(2 if call.guided else 1 for call in program.calls)


def row_seconds(drawer: Drawer, setting: Setting) -> float:
    """Measured: of the network on one row, at the setting's batch. Also the warm-up of what it runs on."""
    probe = replace(setting, steps=min(setting.steps, PROBE_STEPS), cache=None)
    drawer.draw(probe, 0, setting.batch)
    started = time.perf_counter()
    drawn = drawer.draw(probe, 0, setting.batch)
    return (time.perf_counter() - started) / (drawn.evaluations * setting.batch)


def make_plan(
    drawer: Drawer, settings: Sequence[Setting], *, samples: int | None, minutes: float, reference_rows: float
) -> Plan:
    """samples: of every setting, or as many as fit into the minutes, at least `LEAST_ROUNDS` rounds of 4.

    reference_rows: for one sample, of all references together; they are made for one round.
    """
    seconds = _seconds_a_row(drawer, settings)
    rows = sum(evaluations(drawer, setting) for setting in settings)
    if samples is not None:
        size = min(ROUND, -(-samples // LEAST_ROUNDS))
        rounds = -(-samples // size)
        return Plan(size, rounds, seconds * size * (rounds * rows + reference_rows))
    for size in (ROUND, ROUND // 2, ROUND // 4):
        left = SHARE * 60 * minutes - seconds * size * reference_rows
        rounds = int(left / (seconds * size * rows)) if seconds * rows > 0 else LEAST_ROUNDS
        if rounds >= LEAST_ROUNDS or size == ROUND // 4:
            break
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, rounds))
    return Plan(size, rounds, seconds * size * (rounds * rows + reference_rows))


def _seconds_a_row(drawer: Drawer, settings: Sequence[Setting]) -> float:
    """Of the first setting's kind that works; 0 if none does."""
    for setting in settings:
        try:
            return row_seconds(drawer, setting)
        except (SamplingError, ValueError, TypeError, RuntimeError, NotImplementedError):
            continue
    return 0.0
