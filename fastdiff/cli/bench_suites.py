"""`fastdiff bench ops|models|solvers|scaling|convergence`, and `fastdiff bench compare A.json B.json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastdiff import arguments
from fastdiff.bench import convergence, records, scaling, suites
from fastdiff.bench.page import write_page
from fastdiff.cli import bench_gpu
from fastdiff.cli.console import console
from fastdiff.errors import expect
from fastdiff.files import writable_file


def run(
    suite: str,
    against: str | None,
    only: str | None,
    json_file: str | None,
    html_file: str | None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    minutes: float | None = None,
) -> None:
    """See `fastdiff bench SUITE --help`; suite: one of `fastdiff.bench.suites.SUITES`, "scaling" or "convergence".
    device: of the operators and models; dtype, minutes: of the models."""
    where, _ = arguments.device("--device", device), arguments.dtype("--dtype", dtype)
    expect(minutes is None or minutes > 0, f"--minutes must be positive, got {minutes!r}")
    for file in (json_file, html_file):
        if file:
            writable_file(file)
    chosen, peers = words("--only", only), words("--against", against)
    if suite == "scaling":
        rows, fits = scaling.run(chosen or scaling.AXES)
        more: dict[str, Any] = {"fits": fits}
    elif suite == "convergence":
        found = convergence.errors(chosen or convergence.SOLVERS)
        rows, more = [], {"errors": found, "orders": convergence.orders(found), "published": _published()}
    else:
        if suite == "ops" and where.type == "cuda":
            rows = bench_gpu.measured(chosen, where)
        else:
            options = _options(where, dtype, minutes) if suite == "models" else []
            rows = suites.run(suite, against=peers, only=chosen, options=options)
        more = {"device": _named(where)}
    if json_file:
        records.save(json_file, suite, rows, **more)
    if html_file:
        write_page(html_file, suite, rows, **more)
    _print(suite, rows, more)
    for file in (json_file, html_file):
        if file:
            console.print(f"written: [bold]{Path(file).resolve()}[/bold]")


def _options(device: torch.device, dtype: str, minutes: float | None) -> list[str]:
    """Of the script of the models."""
    given = ["--device", str(device), "--dtype", dtype]
    return given + ([] if minutes is None else ["--minutes", str(minutes)])


def _named(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)} ({device})" if device.type == "cuda" else str(device)


def compare(before: str, after: str) -> None:
    """Print what changed, slowest first; exit with 1 if something became slower beyond the spread of both files."""
    old, new = records.load(before), records.load(after)
    changes = records.compare(old, new)
    accuracy = "errors" in new
    what = "1 / error" if accuracy else "ratio to the baseline (p20 to p80)"
    table = Table(title=f"{Path(before).name} to {Path(after).name}: {what}", box=None)
    for heading in ("row", "before", "after", "change"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    for change in changes:
        style = "red" if change.slower else "green" if change.faster else None
        spans = [f"{value:.3g} ({low:.3g} to {high:.3g})" for value, low, high in (change.before, change.after)]
        table.add_row(change.name, *spans, f"{change.factor:.2f}x", style=style)
    Console(highlight=False).print(table)
    slower = [change.name for change in changes if change.slower]
    worse = "less accurate" if accuracy else "slower"
    console.print(f"{len(changes)} rows, {worse}: {', '.join(slower) or 'none'}", markup=False)
    if slower:
        sys.exit(1)


def _print(suite: str, rows: Sequence[records.Row], more: dict[str, Any]) -> None:
    out = Console(highlight=False)
    if rows:
        table = Table(title=f"{suite}: medians, p20 to p80", title_justify="left")
        for heading in ("case", "fastdiff", "baseline", "ratio", "of limit"):
            table.add_column(heading, justify="left" if heading == "case" else "right")
        for row in rows:
            found = records.ratio(row)
            theirs = row["seconds"].get(row.get("baseline"))
            table.add_row(
                row["name"], _time(row["seconds"]["ours"]), _time(theirs) if theirs else "",
                f"{found[0]:.2f}x ({found[1]:.2f} to {found[2]:.2f})" if found else "",
                f"{100 * row['share']:.0f}%" if row.get("share") else "",
                style="red" if found and found[2] < 1 else None,
            )  # fmt: skip
        out.print(table)
    for row in rows:
        numbers = [f"{name} {value:.3g}" for name, value in row.get("columns", {}).items() if value is not None]
        if numbers:
            out.print(f"{row['name']}: {', '.join(numbers)}")
        for what in row.get("left_out", []):
            out.print(f"{row['name']}: left out: {what}", markup=False)
    for axis, fits in more.get("fits", {}).items():
        text = ", ".join(f"{name} {fit['exponent']:.2f}" for name, fit in fits.items() if fit)
        out.print(f"{axis}: exponents: {text or 'one size only'}")
    if "errors" in more:
        _print_convergence(out, more)


def _print_convergence(out: Console, more: dict[str, Any]) -> None:
    calls = convergence.CALLS if out.width >= 120 else convergence.CALLS[1::2]
    title = "RMS distance to the exact solution with so many model calls at most"
    table = Table(title=title, title_justify="left", box=None)
    for heading in ("solver", *map(str, calls), "order"):
        table.add_column(heading, justify="left" if heading == "solver" else "right", no_wrap=True)
    for solver, curve in more["errors"].items():
        within = [[n for n in curve if n <= most] for most in calls]
        cells = [f"{curve[max(counts)]:.1e}" if counts else "" for counts in within]
        table.add_row(solver, *cells, f"{more['orders'][solver]:.2f}")
    out.print(table)
    out.print("Published, FID on CIFAR-10, quoted and not measured here (another model, another measure):")
    for entry in more["published"]:
        figures = ", ".join(f"{fid:g} with {n} calls" for n, fid in entry["fid"].items())
        out.print(f"  {entry['method']}: {figures} ({entry['source']})")


def _published() -> list[dict[str, Any]]:
    return [{"method": q.method, "fid": q.fid, "source": q.source} for q in convergence.PUBLISHED]


def _time(timing: dict[str, float]) -> str:
    scale, unit = (1e6, "us") if timing["median"] < 1e-3 else (1e3, "ms") if timing["median"] < 1 else (1.0, "s")
    return f"{scale * timing['median']:.3g} {unit} ({scale * timing['p20']:.3g} to {scale * timing['p80']:.3g})"


def words(option: str, text: str | None) -> list[str]:
    """Those of an option, which are separated by commas; none if it is not given. Raises ValueError if it is empty."""
    found = [word.strip() for word in (text or "").split(",") if word.strip()]
    expect(bool(found) or text is None, f"{option} needs at least one value, got {text!r}")
    return found
