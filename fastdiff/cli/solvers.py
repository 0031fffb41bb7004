"""`fastdiff solvers`: the table of all solvers, or all there is to know of one."""

from __future__ import annotations

import inspect
import re
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastdiff.cli.console import print_json
from fastdiff.solvers import SOLVERS, Solver, get_solver

WIDE = 130  # columns in which the sources have room
HINT = (
    "Which to take: dpmpp-2m or unipc-3 with 15 to 20 steps suit most models, flow-euler and flow-heun models of flow "
    "matching, dpmpp-2m-sde and ddpm where noise is wanted, ddim where a sample is turned back into noise. "
    "fastdiff profile measures it for your model."
)


def run(name: str | None, as_json: bool) -> None:
    """See `fastdiff solvers --help`."""
    chosen = [get_solver(name)] if name else [solver for _, solver in sorted(SOLVERS.items())]
    if as_json:
        print_json({"solvers": [_row(solver) for solver in chosen]})
    elif name:
        _describe(chosen[0])
    else:
        _list(chosen)


def _row(solver: Solver) -> dict[str, Any]:
    return {
        "name": solver.name,
        "order": solver.order,
        "calls_a_step": solver.evaluations,
        "stochastic": solver.stochastic,
        "adaptive": solver.adaptive,
        "options": {key: value if _is_plain(value) else repr(value) for key, value in solver.options.items()},
        "grid": solver.grid,
        "source": solver.source,
    }


def _is_plain(value: Any) -> bool:
    return value is None or (isinstance(value, (bool, int, float, str)) and value != float("inf"))


def _list(solvers: list[Solver]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("solver", "order", "calls", "noise", "source"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "source")
    console = Console(highlight=False)
    for solver in solvers:
        calls = "adaptive" if solver.adaptive else str(solver.evaluations)
        source = solver.source if console.width >= WIDE else _paper(solver.source)
        table.add_row(solver.name, str(solver.order), calls, _noise(solver), source)
    console.print(table)
    console.print("\nCalls are those of the model a step. One in full, with its options: fastdiff solvers NAME")
    console.print(f"\n{HINT}")


def _paper(source: str) -> str:
    """The authors and the year of the first source that is named, or its name where there is no year."""
    found = re.match(r"[^;]*?\b\d{4}\b", source)
    return found[0] if found else re.split(r"[,;]", source)[0]


def _describe(solver: Solver) -> None:
    console = Console(highlight=False)
    calls = "its own number of" if solver.adaptive else solver.evaluations
    plural = "" if calls == 1 else "s"
    console.print(f"[bold]{solver.name}[/bold]: order {solver.order}, {calls} model call{plural} a step, ", end="")
    console.print(f"noise: {_noise(solver)}, grid if none is named: {solver.grid}")
    console.print(f"source: {solver.source}\n", markup=False)
    for paragraph in (inspect.getdoc(solver.step) or "").split("\n\n"):
        console.print(" ".join(paragraph.split()), markup=False)  # wrapped by the terminal, not as in the file
    if solver.options:
        console.print("\noptions, as in " + escape(f"fastdiff.solvers.get_solver({solver.name!r}, ...):"))
        for key, value in solver.options.items():
            console.print(f"  {key}={value!r}", markup=False)


def _noise(solver: Solver) -> str:
    if not solver.stochastic:
        return "no"
    optional = [key for key in ("eta", "s_churn") if solver.options.get(key) == 0]
    return f"if {optional[0]} > 0" if optional else "yes"
