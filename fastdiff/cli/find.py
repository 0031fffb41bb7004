"""`fastdiff profile --find`: the search with a progress bar, and its answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

import fastdiff
from fastdiff.cli.console import Bars, console, print_json
from fastdiff.cli.profile import MODEL, number, parse_axes, seconds
from fastdiff.errors import expect
from fastdiff.profiling.confirming import Found
from fastdiff.profiling.finding import OUT
from fastdiff.profiling.results import Row, said_of_times, value_of
from fastdiff.profiling.store import PLAN

SWEEP_ONLY = ("samples", "reference_steps", "budget", "workers", "threads", "cluster")


def run(model: str | None, texts: dict[str, str | None], as_json: bool, **options: Any) -> None:
    """See `fastdiff profile --help`; what is None is left to `fastdiff.find`. After Ctrl-C the report holds what was
    done."""
    for name in SWEEP_ONLY:
        expect(options.pop(name, None) is None, f"--{name.replace('_', '-')} is for a sweep, without --find")
    axes = parse_axes(texts)
    expect("thresholds" not in axes, "--threshold is for a sweep, without --find")
    scales = axes.pop("guidance", [None])
    expect(len(scales) == 1, f"--guidance must be one scale with --find, got {len(scales)}")
    if model is None and not options.get("resume"):
        model = MODEL
    if os.getcwd() not in sys.path:  # as in a sweep
        sys.path.append(os.getcwd())
    given = axes | {name: value for name, value in options.items() if value is not None}
    bar = Bars(counts=False, period=600)
    task = bar.add("starting")
    started: list[bool] = []

    def on_progress(what: str, done: float, total: float) -> None:
        if not started:
            started.append(True)
            bar.start()  # not before, so that what is wrong with the arguments is said alone
        bar.update(task, description=what, completed=done, total=total)

    try:
        found = fastdiff.find(model, guidance=scales[0], on_progress=on_progress, **given)
    except KeyboardInterrupt:
        bar.stop()
        folder = Path(given.get("out", OUT))
        kept = (folder / PLAN).is_file()
        console.print(
            f"stopped; what is done is kept in [bold]{folder}[/bold]. The same command with --resume goes on"
            if kept
            else "stopped before anything was measured; nothing is kept"
        )
        raise
    finally:
        bar.stop()
    _print(found)
    expect(found.best is not None, found.reason)
    if as_json:
        print_json(
            {
                "report": str((found.profile.folder / "index.html").resolve()), "best": found.best,
                "start": found.start, "faster": found.faster, "sure": found.sure, "reason": found.reason,
                "line": found.line, "finalists": found.finalists,
                "left_out": found.profile.facts["left_out"],
            }
        )  # fmt: skip


def _print(found: Found) -> None:
    facts = found.profile.facts
    for name, why in facts["left_out"].items():
        console.print(f"left out: {name}: {why}", markup=False, style="dim", soft_wrap=True)
    rows: list[Row] = [row for row in (found.start, *found.finalists) if row is not None]
    table = Table(title=f"{facts['find']['samples']} fresh samples of each, after {len(found.profile.rows)} settings")
    for heading in ("setting", "a sample", "calls", "RMSE", "SSIM", "Frechet"):
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for row in rows:
        label = f"start: {row['label']}" if row is found.start else row["label"]
        if row["error"]:
            table.add_row(label, row["error"], "", "", "", "", style="red")
            continue
        numbers = [number(value_of(row, name)) for name in ("calls", "rmse", "ssim", "frechet")]
        time = f"{seconds(row['seconds']['median'])} ± {100 * row['seconds']['noise']:.0f}%"
        table.add_row(label, time, *numbers, style="bold" if row is found.best else None)
    console.print(table)
    if facts["times"]:
        console.print(f"times: {said_of_times(facts['times'])}", soft_wrap=True)
    if found.best is not None:
        if found.faster is not None:
            factor, low, high = found.faster
            console.print(f"{factor:.1f} times as fast as the start ({low:.1f} to {high:.1f})", style="bold")
        console.print(f"take {found.best['label']}: {found.reason}", markup=False)
        console.print(found.line, markup=False, soft_wrap=True)
    console.print(f"report: [bold]{(found.profile.folder / 'index.html').resolve()}[/bold]", soft_wrap=True)
