"""How much there is to do, how long it will take, and how many samples fit into the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
SHORTEST_REFERENCE = 40  # steps of a converged trajectory that is still worth the name
PROBE_STEPS = 4
ADAPTIVE_CALLS = 60  # of a solver that does not say how many it makes
SHARE = 0.85  # of the time that is planned with; measures, the report and the machine's moods take the rest


@dataclass(frozen=True)
class Plan:
    """round_size: samples of a round. rounds: of every setting. seconds: that it is expected to take; 0 if unknown.
    advice: if that is more than was asked for, the options of the command that would keep to it."""

    round_size: int
    rounds: int
    seconds: float
    advice: str = ""

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
    drawn = drawer.draw(probe, 0, setting.batch)
    return drawn.seconds / (drawn.evaluations * setting.batch)


def reference_rows(settings: Iterable[Setting], reference_steps: int) -> float:
    """Rows of the network for one sample of every converged trajectory: it is drawn with all, half and a quarter of the
    steps."""
    targets = {setting.target for setting in settings}
    return sum(1.75 * reference_steps * (1 if target.cfg() is None else 2) for target in targets)


def make_plan(
    drawer: Drawer, settings: Sequence[Setting], *, samples: int | None, minutes: float, reference_steps: int
) -> Plan:
    """samples: of every setting, or as many as fit into the minutes, at least `LEAST_ROUNDS` rounds of 4. The converged
    trajectories, with so many steps, are made for one round."""
    seconds = _seconds_a_row(drawer, settings)
    costs = {setting: evaluations(drawer, setting) for setting in settings}
    rows, references = sum(costs.values()), reference_rows(settings, reference_steps)
    if samples is not None:
        size = min(ROUND, -(-samples // LEAST_ROUNDS))
        rounds = -(-samples // size)
        return Plan(size, rounds, seconds * size * (rounds * rows + references))
    for size in (ROUND, ROUND // 2, ROUND // 4):
        left = SHARE * 60 * minutes - seconds * size * references
        rounds = int(left / (seconds * size * rows)) if seconds * rows > 0 else LEAST_ROUNDS
        if rounds >= LEAST_ROUNDS or size == ROUND // 4:
            break
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, rounds))
    planned = Plan(size, rounds, seconds * size * (rounds * rows + references))
    if planned.seconds <= 60 * minutes:
        return planned
    return replace(planned, advice=_fitting(costs, reference_steps, 60 * minutes / (seconds * size)))


def _fitting(costs: Mapping[Setting, int], reference_steps: int, most: float) -> str:
    """Options with which the least number of rounds costs at most so many rows for one sample: fewer steps, then a
    shorter converged trajectory, then fewer solvers."""
    kept, options = dict(costs), {}

    def rows() -> float:
        return LEAST_ROUNDS * sum(kept.values()) + reference_rows(kept, reference_steps)

    def drop(axis: str) -> None:
        """The dearest values, until it fits or one is left."""
        while rows() > most:
            values = {value: 0 for value in dict.fromkeys(getattr(setting, axis) for setting in kept)}
            if len(values) == 1:
                return
            for setting, cost in kept.items():
                values[getattr(setting, axis)] += cost
            dearest = max(values, key=lambda value: values[value])
            for setting in [setting for setting in kept if getattr(setting, axis) == dearest]:
                del kept[setting]
            left = ",".join(str(value) for value in values if value != dearest)
            options["--solvers" if axis == "solver" else "--steps"] = left

    drop("steps")
    while rows() > most and reference_steps > SHORTEST_REFERENCE:
        reference_steps -= 4
        options["--reference-steps"] = str(reference_steps)
    drop("solver")
    found = " ".join(f"{name} {value}" for name, value in options.items()) or "nothing can be left out"
    return found + (" (and even that takes longer)" if rows() > most else "")


def _seconds_a_row(drawer: Drawer, settings: Sequence[Setting]) -> float:
    """Of the first setting's kind that works; 0 if none does."""
    for setting in settings:
        try:
            return row_seconds(drawer, setting)
        except (SamplingError, ValueError, TypeError, RuntimeError, NotImplementedError):
            continue
    return 0.0
