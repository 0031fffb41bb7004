"""Successive halving over settings: many on few samples, the best of them on more.

Every setting is first drawn for a block of samples (Jamieson & Talwalkar 2016, Non-stochastic Best Arm Identification);
those that reach the target soonest go on, and so do those that nearly reach it and are faster. What goes on is varied,
one thing at a time (guidance, caching, precision, steps, step times), until the time is used or nothing new is worth
it. Then the blocks are doubled, and the fastest half stays. Seconds come from the calls that were counted and from
what a call costs (speeds.py), not from the clock of a single run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fastdiff import pictures
from fastdiff.errors import expect
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.features import Extractor
from fastdiff.profiling.measures import rmse, ssim
from fastdiff.profiling.plan import evaluations
from fastdiff.profiling.reference import Reference
from fastdiff.profiling.settings import Axes, Setting
from fastdiff.profiling.speeds import Speeds
from fastdiff.profiling.step_times import best_times, moved
from fastdiff.profiling.store import Store, Unit
from fastdiff.profiling.sweep import SHOWN, first_line
from fastdiff.profiling.targets import Target
from fastdiff.solvers import get_solver

BLOCK = 4  # samples
FIRST = 0.35  # of the time, at most for the first settings
VARIED = 0.75  # of the time is over when variations end
TOPS = 5  # settings that are varied at once
SLOWER = 1.1  # than the best known, at most, of what is still tried
MOVES = (0.3, -0.3, 0.1, -0.1)  # shares of an interval by which a step time is moved


@dataclass
class Search:
    """What a search works with. units: by setting and block. fine: times and costs of the model's own trajectory, None
    where there are none. left(): seconds that the search still has; whole: that it had."""

    drawer: Drawer
    store: Store
    extractor: Extractor
    reference: Reference
    blocks: int
    start: Setting
    target: Target
    speeds: Speeds
    axes: Axes
    fine: tuple[Sequence[float], np.ndarray] | None
    left: Callable[[], float]
    whole: float
    tell: Callable[[str], None]
    units: dict[Setting, dict[int, Unit]] = field(default_factory=dict)
    powers: dict[Setting, float] = field(default_factory=dict)  # of settings with times of their own
    passing: set[Setting] = field(default_factory=set)  # steps of a refinement, which nobody needs to see

    def run(self) -> list[Setting]:
        """The settings worth confirming, the fastest first: those that reach the target, or else the nearest. Raises
        ValueError if the start cannot run."""
        self.evaluate([self.start], range(self.blocks), always=True)
        error = self.units[self.start][0].error
        expect(not error, f"the setting to start from, {self.start.label}, cannot run: {error}")
        least = 2 if self.target.measure == "frechet" else 1  # distances of sets need more than four samples
        least = min(least, self.blocks)
        self.evaluate(self._first(), range(least))
        self._vary(least)
        self._refine(least)
        blocks = least
        while blocks < self.blocks:
            blocks = min(2 * blocks, self.blocks)
            kept = self.survivors(max(3, 4 * TOPS * least // blocks), blocks // 2 if blocks > least else least)
            self.evaluate(kept, range(blocks), always=True)
        return self.survivors(3, self.blocks, near=False)

    # ---- drawing

    def evaluate(self, settings: Iterable[Setting], blocks: Iterable[int], *, always: bool = False) -> None:
        """Draw what is not there yet, as long as there is time; always: also after it."""
        numbers = list(blocks)
        for setting in settings:
            if not always and self.left() <= 0:
                return
            units = self.units.setdefault(setting, {})
            for number in numbers:
                if number in units or any(unit.error for unit in units.values()):
                    continue
                unit = self.store.load(setting.slug, number)
                if unit is None:
                    self.tell(f"{len(self.units)} settings: {setting.label}")
                    unit = self._measure(setting, number)
                    self.store.save(setting.slug, number, unit)
                units[number] = unit

    def _measure(self, setting: Setting, number: int) -> Unit:
        first = number * BLOCK
        try:
            drawn = self.drawer.draw(setting, first, BLOCK)
            shown = self.drawer.subject.pictures(drawn.samples).cpu()
        except Exception as error:  # one setting that fails is a row of the table; the search goes on
            return Unit(first, error=first_line(error))
        near = self.reference.pictures[first : first + BLOCK]
        return Unit(
            first, drawn.seconds / BLOCK, drawn.calls, drawn.evaluations, drawn.full_calls, self.extractor(shown),
            rmse(shown, near), ssim(shown, near), pictures.to_uint8(shown[:SHOWN]) if number == 0 else None,
        )  # fmt: skip

    # ---- judging

    def seconds(self, setting: Setting) -> float:
        """Estimated, a sample."""
        return self.speeds.seconds(setting, self.units[setting][0])

    def gap(self, setting: Setting, blocks: int, errors: float = 1.0) -> float:
        """What the setting lacks to the target on the first blocks, beyond so many standard errors; <= 0 if it reaches
        it."""
        own, theirs = ([self.units[s][k] for k in range(blocks)] for s in (setting, self.start))
        return self.target.gap(own, theirs, list(self.units[self.start].values()), self.extractor, errors)

    def known(self, blocks: int) -> list[Setting]:
        """Settings that have these blocks, but those on the way of a refinement."""
        return [
            setting
            for setting, units in self.units.items()
            if setting not in self.passing and all(k in units and not units[k].error for k in range(blocks))
        ]

    def survivors(self, count: int, blocks: int, *, near: bool = True) -> list[Setting]:
        """The fastest that may reach the target, with at least one that does with room to spare: the others may fall
        short on more samples. near: a third are faster ones that nearly reach it. If none reaches it, the nearest."""
        known = [setting for setting in self.known(blocks) if setting != self.start]
        gaps = {setting: self.gap(setting, blocks) for setting in known}
        reach = sorted((s for s in known if gaps[s] <= 0), key=self.seconds)
        short = sorted((s for s in known if gaps[s] > 0), key=lambda s: gaps[s])
        if not reach:
            return short[:count]
        safe = [s for s in reach if self.gap(s, blocks, -1.0) <= 0] or [min(reach, key=lambda s: gaps[s])]
        third = max(1, count // 3)
        faster = [s for s in short if self.seconds(s) < self.seconds(reach[0])][:third] if near else []
        chosen = dict.fromkeys([*safe[:third], *faster, *reach])
        return sorted([*chosen][:count], key=self.seconds)

    # ---- what is tried

    def _first(self) -> list[Setting]:
        """Solvers, steps and grids, thinned out to what the time allows, the fewest steps first."""
        steps, grids, solvers = sorted(self.axes.steps), list(self.axes.grids), list(self.axes.solvers)
        base = replace(self.speeds.base, precision=self.axes.precisions[0], cache=None)

        def made() -> list[Setting]:
            fixed = [s for s in solvers if not get_solver(s).adaptive]  # the others choose their steps
            found = [replace(base, solver=s, steps=n, grid=g) for n in steps for s in fixed for g in grids]
            found += [replace(base, solver=s, steps=steps[0]) for s in solvers if s not in fixed]
            if self.fine is not None:
                found += [self._own(replace(base, solver=s, steps=n)) for n in steps for s in fixed]
            return [s for s in dict.fromkeys(found) if evaluations(self.drawer, s)]

        def cost() -> float:
            return sum(self.speeds.rows(s, BLOCK * evaluations(self.drawer, s)) for s in made())

        # The own step times stand for the grids. The most steps stay: they reach the target if anything does.
        while cost() > FIRST * self.whole and (len(steps) > 3 or len(grids) > 1 or len(solvers) > 2):
            if len(grids) > 1:
                grids.pop()
            elif len(steps) > 5 or len(solvers) <= 2:
                steps = [*steps[:-1:2], steps[-1]]
            else:
                solvers.pop(0)
        return made()

    def _own(self, setting: Setting, power: float | None = None) -> Setting:
        """With the step times that the model's own trajectory asks for."""
        assert self.fine is not None
        power = (get_solver(setting.solver).order + 1) / 2 if power is None else power
        if setting.steps >= len(self.fine[0]):
            return replace(setting, grid=None)
        made = replace(setting, grid=best_times(*self.fine, setting.steps, power))
        self.powers[made] = power
        return made

    def _vary(self, blocks: int) -> None:
        varied: set[Setting] = set()
        while self.left() > (1 - VARIED) * self.whole:
            tops = [s for s in self.survivors(TOPS, blocks) if s not in varied]
            if not tops:
                return
            varied |= set(tops)
            reach = [s for s in self.known(blocks) if s != self.start and self.gap(s, blocks) <= 0]
            most = SLOWER * min(map(self.seconds, reach)) if reach else float("inf")
            found: dict[Setting, float] = {}  # with the most seconds it may take: none more than what it varies
            for top in tops:
                for setting in self._neighbours(top):
                    found[setting] = max(most, self.seconds(top), found.get(setting, 0.0))
            for setting, limit in found.items():
                rows = evaluations(self.drawer, setting)
                if setting in self.units or not rows or self._guess(setting, rows) > limit:
                    continue
                if self.left() <= (1 - VARIED) * self.whole:
                    return
                self.evaluate([setting], range(blocks))

    def _guess(self, setting: Setting, rows: float) -> float:
        """Seconds of a setting that was not drawn; a cache is taken to save all that it could."""
        return self.speeds.rows(setting, rows) * (0.3 if setting.cache else 1.0)

    def _neighbours(self, setting: Setting) -> list[Setting]:
        """One thing changed, or the steps with the times that belong to them."""
        axes = self.axes
        found = [replace(setting, interval=i) for i in axes.intervals] if setting.guidance != 1 else []
        if setting.guidance != 1:
            found += [replace(setting, guidance_every=k) for k in axes.guidance_every]
        found += [replace(setting, cache=c) for c in axes.caches] + [
            replace(setting, precision=p) for p in axes.precisions
        ]
        if get_solver(setting.solver).adaptive:
            return [s for s in found if s != setting]
        plain = replace(setting, grid=None) if isinstance(setting.grid, tuple) else setting
        for change in (-2, -1, 1, 2):
            if setting.steps + change >= 1:
                other = replace(plain, steps=setting.steps + change)
                found.append(
                    self._own(other, self.powers.get(setting)) if plain is not setting and self.fine else other
                )
        if self.fine is not None:
            found += [self._own(plain, power) for power in (1.0, 1.5, 2.0)]
        return [s for s in found if s != setting]

    def _refine(self, blocks: int) -> None:
        """Move single step times of the best, and of the nearest that is faster, where that brings them nearer to the
        converged trajectory."""
        reach = self.survivors(1, blocks, near=False)
        faster = [s for s in self.survivors(TOPS, blocks) if reach and self.seconds(s) < self.seconds(reach[0])]
        for setting in [*faster[:1], *reach]:
            if isinstance(setting.grid, tuple):
                self._moved_times(setting, blocks)

    def _moved_times(self, best: Setting, blocks: int) -> None:
        schedule = self.drawer.subject.schedule

        def error(setting: Setting) -> float:
            units = self.units.get(setting, {})
            if not all(k in units and not units[k].error for k in range(blocks)):
                return float("inf")
            return float(np.mean(np.concatenate([units[k].rmse for k in range(blocks)])))  # type: ignore[arg-type]

        for share in MOVES:
            for index in range(1, best.steps):
                if self.left() <= 0:
                    return
                assert isinstance(best.grid, tuple)
                times = moved(schedule, best.grid, index, share)  # type: ignore[arg-type]
                if times is None:
                    continue
                other = replace(best, grid=times)
                self.passing.add(other)
                self.evaluate([other], range(blocks))
                if error(other) < error(best):
                    best = other
        self.passing.discard(best)
