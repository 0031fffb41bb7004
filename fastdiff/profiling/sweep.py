"""The sweep: rounds over all settings in turn, so that the machine's drift meets them all alike.

In a round every setting draws the same samples. Each setting's round is kept as soon as it is done: a sweep that is
stopped goes on from there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from fastdiff import pictures
from fastdiff.profiling.costs import Costs, Run, estimate
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.features import Extractor
from fastdiff.profiling.measures import rmse, ssim
from fastdiff.profiling.plan import Plan, evaluations, row_seconds
from fastdiff.profiling.reference import Reference, converge
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.store import Store, Unit

SHOWN = 16  # pictures of a setting that the report shows
PASSES = 2  # over the runs that were slower than all runs together explain
MOST_AGAIN = 0.2  # of all runs, in one such pass
# (what is being done, rows of the network done, of how many)
Progress = Callable[[str, float, float], None]


@dataclass
class Sweep:
    """What a sweep works with, and what it has got: references by their target, units by slug and round."""

    drawer: Drawer
    store: Store
    settings: Sequence[Setting]
    plan: Plan
    extractor: Extractor
    reference_steps: int
    on_progress: Progress | None = None
    references: dict[Setting, Reference] = field(default_factory=dict)
    failed_references: dict[Setting, str] = field(default_factory=dict)
    units: dict[str, dict[int, Unit]] = field(default_factory=dict)
    done: float = 0.0
    total: float = 1.0

    def run(self) -> None:
        """Do all that is not done yet. KeyboardInterrupt leaves what is there in `units` and in the folder."""
        rows = {setting: evaluations(self.drawer, setting) for setting in self.settings}
        targets = list(dict.fromkeys(setting.target for setting in self.settings))
        size = self.plan.round_size
        each = {t: 1.75 * self.reference_steps * (1 if t.cfg() is None else 2) * size for t in targets}
        self.total = sum(each.values()) + size * self.plan.rounds * sum(rows.values())
        for target in targets:
            self._converge(target, each[target])
        self._warm_up()
        order = random.Random(0)
        for number in range(self.plan.rounds):
            shuffled = list(self.settings)
            order.shuffle(shuffled)
            for setting in shuffled:
                self._tell(f"round {number + 1} of {self.plan.rounds}: {setting.label}")
                self._round(setting, number)
                self.done += size * rows[setting]
        for _ in range(PASSES):
            self._again()
        self._tell("done")

    def collect(self) -> None:
        """Read what the folder has, after an interruption."""
        for setting in self.settings:
            for number in range(self.plan.rounds):
                if number not in self.units.get(setting.slug, {}):
                    unit = self.store.load(setting.slug, number)
                    if unit is not None:
                        self.units.setdefault(setting.slug, {})[number] = unit

    def costs(self) -> tuple[Costs | None, list[tuple[Setting, int]]]:
        """The times of all settings, estimated over all runs together, and to which setting and round each run belongs;
        None if there is no run."""
        of = [
            (setting, number)
            for setting in self.settings
            for number, unit in sorted(self.units.get(setting.slug, {}).items())
            if not unit.error and unit.seconds > 0
        ]
        size = self.plan.round_size
        runs = [run_of(setting, self.units[setting.slug][number], size) for setting, number in of]
        return (estimate(runs) if runs else None), of

    def _again(self) -> None:
        """Time once more what was slower than all runs together explain, the slowest settings of a round first."""
        found, of = self.costs()
        if found is None:
            return
        for index in found.outliers[: max(1, int(MOST_AGAIN * len(of)))]:
            setting, number = of[index]
            unit = self.units[setting.slug][number]
            self._tell(f"timed again: {setting.label}")
            try:
                drawn = self.drawer.draw(setting, unit.first, self.plan.round_size)
            except Exception:  # what it did the first time stands
                continue
            seconds = drawn.seconds / self.plan.round_size
            if seconds < unit.seconds:
                unit.seconds, unit.others = seconds, drawn.others
            unit.again += 1
            self.store.save(setting.slug, number, unit)

    def _converge(self, target: Setting, rows: float) -> None:
        started = self.done
        steps = 1.75 * self.reference_steps

        def on_step(*_: object) -> None:
            self.done += rows / steps
            self._tell(f"converged trajectory, {self.reference_steps} steps")

        self._tell(f"converged trajectory, {self.reference_steps} steps")
        teacher, drawer, asked = self.drawer.subject.teacher, self.drawer, target
        if teacher is not None:
            drawer, asked = Drawer(teacher, drawer.seed), replace(target, guidance=teacher.guidance)
        try:
            size = self.plan.round_size
            self.references[target] = converge(drawer, self.store, asked, size, self.reference_steps, size, on_step)
        except OSError:
            raise  # of the folder
        except Exception as error:  # the model's: without a reference the rest can still be measured
            self.failed_references[target] = first_line(error)
        self.done = started + rows

    def _warm_up(self) -> None:
        """What is first called with a kind of setting is slower: kernels are chosen, weights are packed."""
        seen = set()
        for setting in self.settings:
            kind = (setting.precision, setting.backend, setting.batch, setting.guidance == 1)
            if kind not in seen and self.store.load(setting.slug, self.plan.rounds - 1) is None:
                seen.add(kind)
                try:
                    row_seconds(self.drawer, setting)
                except Exception:  # its rounds will say so
                    continue

    def _round(self, setting: Setting, number: int) -> None:
        units = self.units.setdefault(setting.slug, {})
        unit = self.store.load(setting.slug, number)
        if unit is None:
            if any(earlier.error for earlier in units.values()):
                return
            try:
                unit = self._measure(setting, number)
            except Exception as error:  # one setting that fails is a row of the table; the sweep goes on
                unit = Unit(first=number * self.plan.round_size, error=first_line(error))
            self.store.save(setting.slug, number, unit)
        units[number] = unit

    def _measure(self, setting: Setting, number: int) -> Unit:
        first, count = number * self.plan.round_size, self.plan.round_size
        drawn = self.drawer.draw(setting, first, count)
        shown = self.drawer.subject.pictures(drawn.samples).cpu()
        unit = Unit(
            first, drawn.seconds / count, drawn.calls, drawn.evaluations, drawn.full_calls,
            features=self.extractor(shown), others=drawn.others,
        )  # fmt: skip
        reference = self.references.get(setting.target)
        if number == 0:
            unit.shown = _bytes(shown[:SHOWN])
            if reference is not None:
                unit.rmse = rmse(shown, reference.pictures)
                unit.ssim = ssim(shown, reference.pictures)
        return unit

    def _tell(self, what: str) -> None:
        if self.on_progress is not None:
            self.on_progress(what, self.done, self.total)


def run_of(setting: Setting, unit: Unit, count: int) -> Run:
    """One batch of the unit's `count` samples, as `estimate` takes it."""
    batches = -(-count // setting.batch)
    rows = unit.evaluations / unit.calls if unit.calls else 1.0  # of the network for one sample, in one call
    calls = (
        ("alone", unit.full_calls * (2 - rows)),
        ("guided", unit.full_calls * (rows - 1)),
        ("reused", (unit.calls - unit.full_calls) * rows),
    )
    kind = (setting.precision, setting.backend, setting.cache, min(setting.batch, count))
    return Run(
        setting.slug, kind, setting.solver, tuple((what, n) for what, n in calls if n > 0),
        unit.seconds * count / batches, unit.others,
    )  # fmt: skip


def _bytes(shown: Tensor) -> np.ndarray:
    return pictures.to_uint8(shown)


def first_line(error: Exception) -> str:
    """What a row of the table says of it."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else ""
    return (
        line[:400]
        if type(error).__name__ in ("ValueError", "SamplingError")
        else f"{type(error).__name__}: {line[:400]}"
    )
