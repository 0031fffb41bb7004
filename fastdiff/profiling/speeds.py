"""What a call costs with each backend, batch, precision and cache, measured before a search needs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fastdiff.errors import expect
from fastdiff.ops.linear_low import PRECISIONS, implementation
from fastdiff.profiling.costs import Run, estimate
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.settings import Axes, Setting
from fastdiff.profiling.store import Unit
from fastdiff.profiling.sweep import first_line, run_of

WARM = 2  # steps of runs that are not counted
STEPS = (3, 9)  # of runs that are timed: what a call costs, and what a run costs beside; a cache reuses in both
ROUNDS = 3
WORTH = 0.03  # by which a precision or a cache must be faster to be searched
SLOW = 1.5  # times as slow as without, from which on a precision or a cache is not timed any further
SHARE = 0.15  # of the time of a search, for all of this
NO_FASTER = "no faster here"


@dataclass
class Speeds:
    """base: backend and batch that all searched settings have. parts: seconds of calls, by (kind, what is called), and
    overheads of solvers. left_out: what cannot be used, or is no faster, with the reason."""

    base: Setting
    parts: Mapping[Hashable, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def seconds(self, setting: Setting, unit: Unit) -> float:
        """A sample, in batches of the setting's size, from the calls that the unit counted."""
        run = run_of(setting, unit, setting.batch)
        return (sum(n * self._call(setting, what) for what, n in run.calls) + self._overhead(setting)) / setting.batch

    def rows(self, setting: Setting, rows: float) -> float:
        """Seconds of so many rows of the network, before anything is known of the setting but its kind."""
        return rows * self._call(setting, "alone") / setting.batch

    def _overhead(self, setting: Setting) -> float:
        return self.parts.get(setting.solver, self.parts.get(self.base.solver, 0.0))

    def _call(self, setting: Setting, what: str) -> float:
        found = self.parts.get((kind_of(setting), what))
        if found is not None:
            return found
        base, lower = self.base, replace(self.base, precision=setting.precision)
        known = [
            w for w in ("guided", "alone") if (kind_of(lower), w) in self.parts and (kind_of(base), w) in self.parts
        ]
        relative = self.parts[kind_of(lower), known[0]] / self.parts[kind_of(base), known[0]] if known else 1.0
        alike = (replace(setting, precision=base.precision), base)
        times = [self.parts[kind_of(each), what] for each in alike if (kind_of(each), what) in self.parts]
        return relative * (times or [self.parts[kind_of(base), "alone"]])[0]


def kind_of(setting: Setting) -> tuple[Hashable, ...]:
    """What shares the cost of a call, as in `run_of`."""
    return setting.precision, setting.backend, setting.cache, setting.batch


def calibrate(
    drawer: Drawer, axes: Axes, guidance: float, whole: float, tell: Callable[[str], None]
) -> tuple[Speeds, Axes]:
    """The speeds, and the axes without what cannot run here or is no faster. whole: seconds of the search, of which
    this takes a share, beside the first calls. Raises ValueError if nothing can run."""
    runs: list[Run] = []
    left_out: dict[str, str] = {}

    def name_of(setting: Setting) -> str:
        if setting.cache is not None:
            return f"cache {setting.cache}"
        usual = setting.precision == axes.precisions[0]
        return f"{setting.backend}, batch {setting.batch}" if usual else setting.precision

    def widths(setting: Setting) -> list[Setting]:
        """What is timed: calls with guidance, and of plain settings also without. The others are taken to save as much
        of these."""
        plain = setting.cache is None and setting.precision == axes.precisions[0]
        return [setting, replace(setting, guidance=1.0)] if plain and guidance != 1 else [setting]

    def first_calls(settings: Sequence[Setting], beside: float = math.inf) -> dict[Setting, float]:
        """Seconds of a short run of each that can run, and is not far slower than `beside`. The calls before it are
        slower: kernels are chosen, weights are packed."""
        found = {}
        for setting in settings:
            tell(f"how fast: {name_of(setting)}")
            try:
                for each in widths(setting):
                    drawer.draw(replace(each, steps=WARM), 0, setting.batch)
                found[setting] = drawer.draw(replace(setting, steps=WARM), 0, setting.batch).seconds
            except Exception as error:
                left_out[name_of(setting)] = first_line(error)
                continue
            if found[setting] > SLOW * beside:
                left_out[name_of(setting)] = NO_FASTER
                del found[setting]
        return found

    def timed(settings: Mapping[Setting, float], share: float) -> None:
        """Runs of each, as many rounds as the share of the time allows."""
        once = sum(len(widths(s)) * sum(STEPS) / WARM * seconds for s, seconds in settings.items())
        for _ in range(max(1, min(ROUNDS, int(share * whole / once))) if once else 0):
            for each in [replace(w, steps=steps) for setting in settings for w in widths(setting) for steps in STEPS]:
                tell(f"how fast: {name_of(each)}")
                drawn = drawer.draw(each, 0, each.batch)
                unit = Unit(0, drawn.seconds / each.batch, drawn.calls, drawn.evaluations, drawn.full_calls)
                runs.append(replace(run_of(each, unit, each.batch), others=drawn.others))

    first = Setting("ddim", STEPS[0], guidance=guidance, precision=axes.precisions[0])
    plain = first_calls([replace(first, backend=b, batch=size) for b in axes.backends for size in axes.batches])
    expect(len(plain) > 0, "no backend can run the model; " + "; ".join(f"{k}: {v}" for k, v in left_out.items()))
    timed(plain, SHARE / 2)
    parts = estimate(runs).parts
    what = "alone" if guidance == 1 else "guided"
    base = min(plain, key=lambda s: parts[kind_of(s), what] / s.batch)
    low = PRECISIONS if drawer.subject.device.type == "cpu" else ()  # elsewhere optimize says that they are for CPUs
    plainly = {p for p in axes.precisions[1:] if p in low and implementation(p) == "plain"}
    left_out.update(dict.fromkeys(plainly, "no instructions for it here"))
    lower = [replace(base, precision=p) for p in axes.precisions[1:] if p not in plainly]
    precisions = first_calls(lower, plain[base])
    caches = first_calls([replace(base, cache=c) for c in axes.caches if c is not None], plain[base])
    timed({**precisions, **caches}, SHARE / 2)
    found = estimate(runs)
    speeds = Speeds(base, found.parts, left_out)
    at_base = found.parts[kind_of(base), what]
    kept_precisions = [base.precision]
    for setting in precisions:
        if found.parts[kind_of(setting), what] < at_base * (1 - WORTH):
            kept_precisions.append(setting.precision)
        else:
            left_out[name_of(setting)] = NO_FASTER
    kept_caches: list[str | None] = [None]
    for setting in caches:
        width = 1 if guidance == 1 else 2  # a guided call that reuses counts twice, see `run_of`
        if width * found.parts.get((kind_of(setting), "reused"), at_base) < at_base * (1 - WORTH):
            kept_caches.append(setting.cache)
        else:
            left_out[name_of(setting)] = NO_FASTER
    return speeds, replace(axes, precisions=kept_precisions, caches=kept_caches)
