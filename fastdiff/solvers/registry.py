"""What a solver is, and the table of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from math import inf
from numbers import Integral, Real
from typing import Any

import numpy as np

from fastdiff.arguments import described
from fastdiff.errors import expect, unknown
from fastdiff.process.schedules import Point

Spans = Callable[..., Sequence[int]]


@dataclass(frozen=True)
class Solver:
    """A solver as data.

    step: the formula. order: of convergence on the ODE, or in distribution for a stochastic solver; 0 where more steps
    approach no solution. evaluations: model calls a step. history: entries that a step looks back to. grid: the one
    taken where none is named. source: paper and equation. options: the keyword arguments of `step` and their values.
    spans: for a solver whose steps take several intervals of the grid, how many each takes, from their number, whether
    the last one ends at the data, and the options. adaptive: it chooses its own times between the ends of the grid.
    warm_up: further model calls that its first steps make, before the history is full. route: from the grid's points to
    those of every step, for methods that go up again in between.
    """

    name: str
    step: Callable[..., Any]
    order: int
    evaluations: int
    history: int
    grid: str
    source: str
    stochastic: bool
    spans: Spans | None = None
    adaptive: bool = False
    warm_up: int = 0
    options: dict[str, Any] = field(default_factory=dict, hash=False)  # solvers are keys of a cache
    route: Callable[[Sequence[Point]], list[list[Point]]] | None = None

    def __post_init__(self) -> None:
        eta = self.options.get("eta", 0.0)
        expect(
            isinstance(eta, Real) and not isinstance(eta, bool) and 0 <= float(eta) < inf,
            f"eta must be a finite number >= 0, got {eta!r}",
        )

    def intervals(self, points: Sequence[Point]) -> list[list[Point]]:
        """The points of every step, from its start to its end, inner points included. Raises ValueError for a grid that
        does not suit the solver."""
        expect(not self.adaptive, f"solver {self.name!r} chooses its steps as it runs, by `fastdiff.sample` alone")
        if self.route is not None:
            return self.route(points)
        count = len(points) - 1
        if self.spans is None:
            return [list(pair) for pair in pairwise(points)]
        ends = [0, *accumulate(self.spans(count, points[-1].sigma == 0, **self.options))]
        expect(ends[-1] == count, f"solver {self.name!r} cannot divide {count} intervals of a grid into its steps")
        return [list(points[start : end + 1]) for start, end in pairwise(ends)]

    def with_options(self, **options: Any) -> Solver:
        """This solver with other options. Raises ValueError for an option it does not have, and for a value of another
        kind than its own."""
        for name, value in options.items():
            if name not in self.options:
                raise (
                    unknown(f"option of solver {self.name!r}", name, self.options)
                    if self.options
                    else ValueError(f"solver {self.name!r} has no options, got {name!r}")
                )
            if name != "eta":  # which any solver checks
                _expect_kind(name, value, self.options[name])
        return replace(self, options={**self.options, **options})


def _expect_kind(name: str, value: Any, known: Any) -> None:
    """Raise ValueError for an option's value that cannot take the place of the one it has. Tables are the solver's."""
    wanted = {bool: "True or False", int: "a whole number", float: "a number", str: "a name"}.get(type(known))
    good = {
        bool: isinstance(value, (bool, np.bool_)),
        int: isinstance(value, Integral) and not isinstance(value, bool),
        float: not isinstance(value, (bool, np.bool_, str, dict, complex, type(None))),
        str: isinstance(value, str),
    }.get(type(known), True)
    if not good:
        raise ValueError(f"{name} must be {wanted}, got {described(value)}")


SOLVERS: dict[str, Solver] = {}


def solver(
    *,
    order: int,
    source: str,
    evaluations: int = 1,
    history: int = 0,
    grid: str = "uniform",
    name: str | None = None,
    spans: Spans | None = None,
    adaptive: bool = False,
    warm_up: int = 0,
    **values: Any,
) -> Callable:
    """Register a step function under its name, with dashes, or `name`; its keyword-only arguments but `noise` are its
    options, with `values` in place of their defaults, so that one function may serve several solvers."""

    def register(step: Callable[..., Any]) -> Callable[..., Any]:
        label = name or step.__name__.replace("_", "-")
        expect(label not in SOLVERS, f"solver {label!r} is registered twice")
        keywords = {k: p.default for k, p in inspect.signature(step).parameters.items() if p.kind is p.KEYWORD_ONLY}
        stochastic = keywords.pop("noise", None) is not None
        expect(values.keys() <= keywords.keys(), f"solver {label!r} has options {keywords}, not {values}")
        SOLVERS[label] = Solver(
            label,
            step,
            order,
            evaluations,
            history,
            grid,
            source,
            stochastic,
            spans,
            adaptive,
            warm_up,
            {**keywords, **values},
        )
        return step

    return register


def get_solver(name: str | Solver, **options: Any) -> Solver:
    """The solver of that name with these options, e.g. get_solver("ddim", eta=1.0).

    Raises ValueError that lists the near names.
    """
    if isinstance(name, Solver):
        return name.with_options(**options)
    if not isinstance(name, str):
        raise TypeError(f"solver must be a name or a fastdiff Solver, got {described(name)}")
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS, "which `fastdiff solvers` lists")
    return SOLVERS[name].with_options(**options)
