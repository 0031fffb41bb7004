"""What a solver is, and the table of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fastdiff.errors import expect, unknown


@dataclass(frozen=True)
class Solver:
    """A solver as data.

    step: the formula. order: of convergence on the ODE, or in distribution for a stochastic solver. evaluations: model
    calls a step. history: entries that a step looks back to. grid: the one taken where none is named. source: paper and
    equation. options: the keyword arguments of `step` and their values.
    """

    name: str
    step: Callable[..., Any]
    order: int
    evaluations: int
    history: int
    grid: str
    source: str
    stochastic: bool
    options: dict[str, Any] = field(default_factory=dict, hash=False)  # solvers are keys of a cache

    def with_options(self, **options: Any) -> Solver:
        """This solver with other options. Raises ValueError for an option it does not have."""
        for name in options:
            if name not in self.options:
                raise (
                    unknown(f"option of solver {self.name!r}", name, self.options)
                    if self.options
                    else ValueError(f"solver {self.name!r} has no options, got {name!r}")
                )
        return replace(self, options={**self.options, **options})


SOLVERS: dict[str, Solver] = {}


def solver(*, order: int, source: str, evaluations: int = 1, history: int = 0, grid: str = "uniform") -> Callable:
    """Register a step function under its name, with dashes; its keyword-only arguments but `noise` are its options."""

    def register(step: Callable[..., Any]) -> Callable[..., Any]:
        name = step.__name__.replace("_", "-")
        expect(name not in SOLVERS, f"solver {name!r} is registered twice")
        keywords = {k: p.default for k, p in inspect.signature(step).parameters.items() if p.kind is p.KEYWORD_ONLY}
        stochastic = keywords.pop("noise", None) is not None
        SOLVERS[name] = Solver(name, step, order, evaluations, history, grid, source, stochastic, keywords)
        return step

    return register


def get_solver(name: str | Solver, **options: Any) -> Solver:
    """The solver of that name with these options, e.g. get_solver("ddim", eta=1.0).

    Raises ValueError that lists the near names.
    """
    if isinstance(name, Solver):
        return name.with_options(**options)
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    return SOLVERS[name].with_options(**options)
