"""One combination of the sweep: solver, steps and everything else that changes speed or quality."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

from fastdiff import arguments
from fastdiff.errors import expect, unknown
from fastdiff.guidance import CFG, Threshold
from fastdiff.models.caching import Caching
from fastdiff.ops.linear_low import PRECISIONS as LOW
from fastdiff.process.grids import GRIDS
from fastdiff.runtime import choice
from fastdiff.solvers import get_solver

PRECISIONS = ("float32", "bfloat16", "float16", *LOW)  # the low ones are `fastdiff.optimize`'s, of float32 networks


@dataclass(frozen=True)
class Setting:
    """How samples are drawn.

    guidance: scale; 1 is none. interval: (low, high) in lambda where guidance applies. guidance_every: steps from one
    unconditional output to the next, see `fastdiff.CFG`. threshold: of x0; percentile: makes it dynamic. precision: of
    the network, its dtype or one of `fastdiff.optimize`. batch: samples at once. grid: None for the solver's own, or
    the decreasing times themselves. backend: as in `fastdiff.use`, or "optimize" for `fastdiff.optimize`. cache: e.g.
    "deep:2" or "deep:t=0.1", see `fastdiff.caching`.
    """

    solver: str
    steps: int
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    threshold: float | None = None
    percentile: float | None = None
    precision: str = "float32"
    batch: int = 16
    grid: str | tuple[float, ...] | None = None
    backend: str = "auto"
    cache: str | None = None
    guidance_every: int = 1

    def __post_init__(self) -> None:
        get_solver(self.solver)
        expect(
            isinstance(self.steps, int) and self.steps >= 1, f"steps must be a whole number >= 1, got {self.steps!r}"
        )
        expect(
            isinstance(self.batch, int) and self.batch >= 1, f"batch must be a whole number >= 1, got {self.batch!r}"
        )
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if isinstance(self.grid, (tuple, list)):
            object.__setattr__(self, "grid", tuple(float(t) for t in self.grid))
            expect(len(self.grid) == self.steps + 1, f"{self.steps} steps need as many times and one, got {self.grid}")
        elif self.grid is not None and self.grid not in GRIDS:
            raise unknown("grid", self.grid, GRIDS)
        if self.backend not in BACKENDS:
            raise unknown("backend", self.backend, BACKENDS)
        if self.interval is not None:
            object.__setattr__(self, "interval", tuple(self.interval))
        self.cfg(), self.clip(), self.caching()  # refused here if they cannot be

    def cfg(self) -> CFG | None:
        """Guidance, None where the scale is 1."""
        every = arguments.whole("guidance_every", self.guidance_every, 1)
        return None if self.guidance == 1 else CFG(float(self.guidance), self.interval, every=every)

    @property
    def dtype(self) -> str:
        """Of the network's weights."""
        return "float32" if self.precision in LOW else self.precision

    def clip(self) -> Threshold | None:
        """Of x0."""
        expect(self.percentile is None or self.threshold is not None, "a percentile needs a threshold, the least limit")
        return None if self.threshold is None else Threshold(self.threshold, self.percentile)

    def caching(self) -> Caching | None:
        """Across steps."""
        return None if self.cache is None else Caching.parse(self.cache)

    @property
    def label(self) -> str:
        """For people: what differs from the defaults."""
        return describe(self, [name for name in _SHOWN if getattr(self, name) != _DEFAULTS[name]])

    @property
    def slug(self) -> str:
        """Its name in files, short and unique."""
        items = sorted(self.to_dict().items())
        text = repr([(name, value) for name, value in items if name not in _LATER or value != _LATER[name]])
        return f"{self.solver}-{self.steps}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    @property
    def target(self) -> Setting:
        """What it approximates: settings with the same target share the converged trajectory."""
        return Setting(
            "dpmpp-2m", 1, guidance=self.guidance, interval=self.interval, threshold=self.threshold,
            percentile=self.percentile,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        found = asdict(self)
        found["interval"] = list(self.interval) if self.interval else None
        found["grid"] = list(self.grid) if isinstance(self.grid, tuple) else self.grid
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setting:
        """The opposite of to_dict."""
        interval = data.get("interval")
        return cls(**{**data, "interval": tuple(interval) if interval else None})


BACKENDS = (*choice.BACKENDS, "optimize")
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Setting)}
_LATER = {"guidance_every": 1}  # fields that folders of earlier versions do not have in their names
_SHOWN = (
    "guidance",
    "interval",
    "guidance_every",
    "threshold",
    "percentile",
    "precision",
    "batch",
    "grid",
    "backend",
    "cache",
)


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values of a sweep, one axis for each field of `Setting`; thresholds are limits or `Threshold`s, None is none.

    Raises ValueError for an axis without a value.
    """

    solvers: Sequence[str] = ("ddim", "dpmpp-2m", "deis-3", "unipc-3", "heun")
    steps: Sequence[int] = (5, 8, 12, 20, 35)
    guidance: Sequence[float] = (1.0,)
    intervals: Sequence[tuple[float, float] | None] = (None,)
    thresholds: Sequence[Threshold | float | None] = (None,)
    precisions: Sequence[str] = ("float32",)
    batches: Sequence[int] = (16,)
    grids: Sequence[str | tuple[float, ...] | None] = (None,)
    backends: Sequence[str] = ("auto",)
    caches: Sequence[str | None] = (None,)
    guidance_every: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            expect(len(values) > 0, f"{name} of the sweep must have a value")
        for interval in self.intervals:
            CFG(1.0, interval)  # refused here, also where no guidance uses it

    def combinations(self) -> list[Setting]:
        """All settings of these values, each once. What belongs to guidance is left out without it, and the steps of an
        adaptive solver are. Raises ValueError for values that no run could have."""
        return list({setting.slug: setting for setting in self._settings()}.values())

    def _settings(self) -> Iterator[Setting]:
        for values in product(*vars(self).values()):
            solver, steps, guidance, interval, threshold, precision, batch, grid, backend, cache, every = values
            clip = threshold if isinstance(threshold, Threshold) else None
            yield Setting(
                solver,
                self.steps[0] if get_solver(solver).adaptive else steps,  # it chooses its own
                guidance=guidance,
                interval=None if guidance == 1 else interval,
                threshold=clip.limit if clip else threshold,
                percentile=clip.percentile if clip else None,
                precision=precision,
                batch=batch,
                grid=grid,
                backend=backend,
                cache=cache,
                guidance_every=1 if guidance == 1 else every,
            )


def describe(setting: Setting, names: Sequence[str], *, steps: bool = True) -> str:
    """Solver, steps, and those fields."""
    counted = steps and not get_solver(setting.solver).adaptive
    words = [setting.solver, f"{setting.steps} step{'s' * (setting.steps != 1)}"] if counted else [setting.solver]
    for name in names:
        value = getattr(setting, name)
        if value == _LATER.get(name, ""):
            continue
        if isinstance(value, tuple) and name == "grid":
            told_apart = hashlib.sha256(repr(value).encode()).hexdigest()[:4]
            words.append(f"times {told_apart}" if steps else "times of its own")
        elif value is not None:
            name = name.replace("_", " ")
            words.append(str(value) if name in ("precision", "backend") else f"{name} {_plain(value)}")
        elif name == "cache":
            words.append("no cache")
    return ", ".join(words)


def varying(settings: Sequence[Setting]) -> list[str]:
    """The fields beside solver and steps in which these settings differ."""
    return [name for name in _SHOWN if len({getattr(setting, name) for setting in settings}) > 1]


def common(settings: Sequence[Setting]) -> dict[str, Any]:
    """The fields that all of these settings share, where they are set."""
    shared = {name: getattr(settings[0], name) for name in _SHOWN if name not in varying(settings)}
    return {name: value for name, value in shared.items() if value is not None and value != _LATER.get(name)}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
