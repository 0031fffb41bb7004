"""`fastdiff distribute sample`: many samples with a progress bar, and what came of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from fastdiff import distributed
from fastdiff.cli.console import Bars, console, print_json
from fastdiff.cli.picture_model import lines_of
from fastdiff.distributed import torchrun
from fastdiff.distributed.scheduler import Progress, Throughput
from fastdiff.errors import expect

MODEL = "emoji-unet-32"
SHOWN = 16  # workers in the table; of more only the slowest and the fastest


def run(model: str | None, out: str, workers: int | None, as_json: bool, **options: Any) -> None:
    """See `fastdiff distribute sample --help`; what is None is left to `fastdiff.distributed.sample`."""
    if model is None and not options["resume"]:
        model = MODEL
    if os.getcwd() not in sys.path:  # a console script lacks it; last, as a checkout has the sources in it
        sys.path.append(os.getcwd())
    if torchrun.rank() > 0:  # rank 0 says what there is to say
        distributed.sample(model, out, workers=workers, **options)
        return
    bars = Bars()
    task = bars.add("starting")
    told: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        if not told:
            bars.start()  # not before, so that what is wrong with the arguments is said alone
        told[:] = [progress]
        bars.update(
            task, description=_said(progress), completed=progress.done + progress.given_up, total=progress.units
        )

    try:
        found = distributed.sample(model, out, workers=workers, on_progress=on_progress, **options)
    except KeyboardInterrupt:
        bars.stop()
        console.print(f"stopped; what is made is kept in [bold]{out}[/bold]. The same command with --resume goes on")
        raise
    finally:
        bars.stop()
    _print(found, told)
    if as_json:
        print_json(
            {
                "store": found.store, "samples": found.samples, "sha256": found.sha256, "kinds": list(found.kinds),
                "statistics": dict(found.statistics),
                "failed": [{"first": a, "last": b, "why": why} for (a, b), why in found.failed.items()],
                "workers": {name: vars(each) for name, each in found.workers.items()},
            }
        )  # fmt: skip
    if found.failed:
        (first, last), why = next(iter(found.failed.items()))
        more = f" and {len(found.failed) - 1} more" if len(found.failed) > 1 else ""
        raise ValueError(
            f"samples {first} to {last}{more} could not be made: {why}. All others are there; --resume tries again"
        )


def prompts_of(prompt: str | None, class_name: str | None, path: str | None) -> list[str] | None:
    """What is given by --prompt, --class or the file of --prompts, of which one at most may be; None for nothing."""
    given = [each for each in (prompt, class_name, path) if each is not None]
    expect(len(given) <= 1, "give one of --prompt, --class and --prompts")
    if path is None:
        return given or None
    return [line for _, line in lines_of(path)]


def _said(progress: Progress) -> str:
    """What the bar says: shards a minute, the time left, and what went wrong so far."""
    words = ["shards"]
    if progress.made and progress.seconds:
        words.append(f"{60 * progress.made / progress.seconds:.3g} a minute")
    if progress.left and not console.is_terminal:  # whose bar says it
        words.append(
            f"about {progress.left / 60:.0f} min left" if progress.left >= 90 else f"{progress.left:.0f} s left"
        )
    for count, what in (
        (progress.retries, "tried again"), (progress.deaths, "workers died"), (progress.copies, "made twice"),
        (progress.given_up, "failed"),
    ):  # fmt: skip
        if count:
            words.append(f"{count} {what}")
    return ", ".join(words)


def _print(found: distributed.Result, told: list[Progress]) -> None:
    if found.workers:
        console.print(workers_table(found.workers))
    console.print(f"{found.samples} samples in [bold]{found.store}[/bold]", soft_wrap=True)
    if found.sha256:
        console.print(f"SHA-256 of all: {found.sha256}", soft_wrap=True)
    if len(found.kinds) > 1:
        console.print(f"made by workers of {len(found.kinds)} kinds, whose roundings may differ:", markup=False)
        for kind in found.kinds:
            console.print(f"  {kind}", markup=False, soft_wrap=True)
    if found.differing:
        console.print(
            f"{len(found.differing)} shards were made twice with different bits; the first was kept", style="red"
        )
    if "frechet" in found.statistics:
        told_features = f"{found.statistics['features']} features of {found.statistics['samples']} samples"
        console.print(f"Frechet distance to the data: {found.statistics['frechet']:.4g}, {told_features}")


def workers_table(workers: Mapping[str, Throughput]) -> Table:
    """What each worker did: shards, seconds a shard."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("worker", "shards", "seconds a shard"):
        table.add_column(heading, justify="left" if heading == "worker" else "right")
    ranked = sorted(workers.items(), key=lambda item: item[1].seconds / max(1, item[1].units))
    chosen = ranked if len(ranked) <= SHOWN else [*ranked[: SHOWN // 2], *ranked[-SHOWN // 2 :]]
    for name, each in chosen:
        table.add_row(name, str(each.units), f"{each.seconds / each.units:.3g}" if each.units else "")
    return table
