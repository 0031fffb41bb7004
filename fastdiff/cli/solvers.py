"""`fastdiff solvers`: the table of all solvers."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from fastdiff.cli.console import print_json
from fastdiff.solvers import SOLVERS


def run(as_json: bool) -> None:
    """See `fastdiff solvers --help`."""
    rows: list[dict[str, Any]] = [
        {
            "name": solver.name,
            "order": solver.order,
            "calls_a_step": solver.evaluations,
            "stochastic": solver.stochastic,
            "options": solver.options,
            "grid": solver.grid,
            "source": solver.source,
        }
        for _, solver in sorted(SOLVERS.items())
    ]
    if as_json:
        print_json({"solvers": rows})
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("solver", "order", "calls a step", "noise", "options", "grid", "source"):
        table.add_column(heading)
    for row in rows:
        options = ", ".join(f"{key}={value}" for key, value in row["options"].items())
        noise = "no" if not row["stochastic"] else "if eta > 0" if row["options"].get("eta") == 0 else "yes"
        table.add_row(
            row["name"], str(row["order"]), str(row["calls_a_step"]), noise, options, row["grid"], row["source"]
        )
    Console(highlight=False).print(table)
