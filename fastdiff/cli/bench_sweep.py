"""`fastdiff bench ops --sweep --out FILE`: all candidates of the operators on a GPU, in a file for the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fastdiff.bench import measured, sweep
from fastdiff.bench.measured import Measured
from fastdiff.cli.console import console
from fastdiff.errors import expect, unknown
from fastdiff.files import writable_file
from fastdiff.ops import OPS
from fastdiff.runtime import tuning


def run(only: Sequence[str], device: torch.device, out: str | None, minutes: float | None) -> None:
    """See `fastdiff bench ops --help`."""
    for name in only:
        if name not in OPS:
            raise unknown("op", name, OPS)
    expect(out is not None, "--sweep needs --out, a file for what is measured")
    expect(minutes is None or minutes > 0, f"--minutes must be positive, got {minutes!r}")
    expect(device.type == tuning.tuner.timer.device_type, f"--sweep needs --device cuda, got {device}")
    path = writable_file(str(out))  # said first if it cannot be written
    found = sweep.run(
        only, device, minutes=minutes or sweep.MINUTES, say=lambda text: console.print(text, markup=False),
        keep=lambda found: measured.save(path, found),
    )  # fmt: skip
    expect(bool(found.cases), "nothing was measured, and no file is written")
    measured.save(path, found)
    Console(highlight=False).print(table(found))
    console.print(f"written: [bold]{Path(path).resolve()}[/bold]")


def table(found: Measured) -> Table:
    """The quickest candidates of each case, and how many could not be taken."""
    made = Table(title=f"{found.device}: microseconds in a CUDA graph", title_justify="left")
    for heading in ("case", "quickest", "then", "failed"):
        made.add_column(heading)
    for case in found.cases:
        times = sorted((time.microseconds, name) for name, time in case.times.items())
        said = [f"{name} {us:.1f}" for us, name in times]
        made.add_row(str(case), said[0], ", ".join(said[1:3]), str(len(case.failed) or ""))
    return made
