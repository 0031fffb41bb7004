"""`fastdiff profile`: the sweep with a progress bar, and its answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

import fastdiff
from fastdiff import distributed
from fastdiff.cli.console import Bars, console, print_json
from fastdiff.errors import expect
from fastdiff.profiling.api import OUT
from fastdiff.profiling.plan import Plan
from fastdiff.profiling.report import require
from fastdiff.profiling.results import said_of_times, value_of
from fastdiff.profiling.store import PLAN

MODEL = "emoji-unet-32"
FIND_ONLY = ("target_ssim", "target_frechet", "start", "start_steps")


def run(model: str | None, texts: dict[str, str | None], as_json: bool, **options: Any) -> None:
    """See `fastdiff profile --help`; what is None is left to `fastdiff.profile`.

    After Ctrl-C the report holds what was done.
    """
    require()
    for name in FIND_ONLY:
        expect(options.pop(name, None) is None, f"--{name.replace('_', '-')} is for a search, with --find")
    if model is None and not options.get("resume"):
        model = MODEL
    if os.getcwd() not in sys.path:  # a console script lacks it; last, as a checkout has the sources in it
        sys.path.append(os.getcwd())
    given = parse_axes(texts) | {name: value for name, value in options.items() if value is not None}
    bar = Bars(counts=False, period=600)
    task = bar.add("starting")

    def on_progress(what: str, done: float, total: float) -> None:
        bar.update(task, description=what, completed=done, total=total)

    planned: list[bool] = []  # not empty when there is something to go on with

    def on_plan(plan: Plan, count: int) -> None:
        about = f", about {plan.seconds / 60:.0f} min" if plan.seconds >= 60 else ""
        settings = f"{count} setting{'s' * (count != 1)}"
        rounds = f"{plan.rounds} rounds of {plan.round_size}: {plan.samples} samples each"
        console.print(f"{settings}, {rounds}{about}")
        planned.append(True)
        if plan.advice:
            console.print(f"that is longer than --minutes asks for; to keep to it: {plan.advice}", markup=False)
        bar.start()  # not before, so that what is wrong with the arguments is said alone

    try:
        run_sweep = fastdiff.profile if {"workers", "cluster"}.isdisjoint(given) else distributed.profile
        found = run_sweep(model, on_progress=on_progress, on_plan=on_plan, **given)
    except KeyboardInterrupt:
        bar.stop()
        if planned or (Path(given.get("out", OUT)) / PLAN).is_file():
            console.print(
                f"stopped; what is done is kept, and reported in [bold]{given.get('out', OUT)}[/bold] if there is any. "
                "The same command with --resume goes on"
            )
        else:
            console.print("stopped before anything was measured; nothing is kept")
        raise
    finally:
        bar.stop()
    _print(found)
    bad = [row for row in found.rows if row["error"]]
    if len(bad) == len(found.rows):
        raise ValueError(f"no setting could be run; the first, {bad[0]['label']}: {bad[0]['error']}")
    if found.picked is None and {"budget", "target_rmse"} & given.keys():
        raise ValueError(found.reason)
    if as_json:
        print_json(
            {
                "report": str((found.folder / "index.html").resolve()),
                "samples": found.facts["samples"],
                "picked": found.picked,
                "reason": found.reason,
                "line": found.line,
                "front": [row["label"] for row in found.front],
                "failed": {row["label"]: row["error"] for row in found.rows if row["error"]},
            }
        )


def _print(found: fastdiff.profiling.Profile) -> None:
    count = found.facts["samples"]
    table = Table(
        title=f"the front: no other setting is better and no slower\n{count} samples a setting, too few for FID"
    )
    for heading in ("setting", "a sample", "calls", "RMSE", "SSIM", "Frechet", "KID"):
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for row in found.front:
        numbers = [number(value_of(row, name)) for name in ("calls", "rmse", "ssim", "frechet", "kid")]
        mark = "bold" if found.picked is row else None
        table.add_row(row["label"], seconds(row["seconds"]["median"]), *numbers, style=mark)
    if found.front:
        console.print(table)
    failed: dict[str, list[str]] = {}
    for row in found.rows:
        if row["error"]:
            failed.setdefault(row["error"], []).append(row["label"])
    for error, labels in failed.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        console.print(f"failed: {labels[0]}{more}: {error}", markup=False, style="red", soft_wrap=True)
    for reference in found.facts["references"]:
        console.print(
            f"converged trajectory: {reference['steps']} steps, RMSE about {reference['error']:.2g} of its own, "
            f"guidance {reference['target']['guidance']:g}"
        )
    if found.facts["times"]:
        console.print(f"times: {said_of_times(found.facts['times'])}")
    if found.picked is not None:
        console.print(f"take [bold]{found.picked['label']}[/bold]: {found.reason}")
        console.print(found.line, markup=False, soft_wrap=True)
    else:
        console.print(found.reason, markup=False)
    console.print(f"report: [bold]{(found.folder / 'index.html').resolve()}[/bold]", soft_wrap=True)


def seconds(value: float) -> str:
    """For people."""
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def number(value: float | None) -> str:
    """For people; empty where there is none."""
    return "" if value is None else f"{value:.3g}"


def parse_axes(texts: dict[str, str | None]) -> dict[str, Any]:
    """The sweep's axes from comma-separated texts. Raises ValueError that names the option."""
    read: dict[str, Callable[[str], Any]] = {
        "solvers": str, "steps": _whole, "guidance": _float, "precisions": str, "batches": _whole,
        "grids": _optional(str), "backends": str, "caches": _optional(str), "intervals": _optional(_interval),
        "thresholds": _optional(_limit), "guidance_every": _whole,
    }  # fmt: skip
    axes: dict[str, Any] = {}
    for name, text in texts.items():
        if text is None:
            continue
        words = [word.strip() for word in text.split(",") if word.strip()]
        option = f"--{OPTIONS.get(name, name)}"
        expect(len(words) > 0, f"{option} needs at least one value, got {text!r}")
        try:
            axes[name] = list(dict.fromkeys(read[name](word) for word in words))
        except ValueError as error:
            raise ValueError(f"{option} {text!r}: {error}") from error
    return axes


OPTIONS = {
    "precisions": "precision", "batches": "batch", "grids": "grid", "backends": "backend", "caches": "cache",
    "intervals": "interval", "thresholds": "threshold", "guidance_every": "guidance-every",
}  # fmt: skip


def _optional(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda word: None if word == "none" else read(word)


def _whole(word: str, what: str = "a whole number") -> int:
    try:
        return int(word)
    except ValueError as error:
        raise ValueError(f"{word!r} is not {what}") from error


def _float(word: str, what: str = "a number") -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(f"{word!r} is not {what}") from error


def _interval(word: str) -> tuple[float, float]:
    low, separator, high = word.partition(":")
    expect(bool(separator), f"an interval must be like -2:1, got {word!r}")
    return _float(low, "the low end of an interval like -2:1"), _float(high, "the high end of an interval like -2:1")


def _limit(word: str) -> fastdiff.Threshold:
    limit, separator, percentile = word.partition("@")
    share = _float(percentile, "a percentile as in 1@0.995") if separator else None
    return fastdiff.Threshold(_float(limit, "a threshold like 1 or 1@0.995"), share)
