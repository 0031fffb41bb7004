"""The table of a benchmark, and its heading: what decides about the numbers besides the code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fastdiff.bench.compare import Row
from fastdiff.bench.heap import heap
from fastdiff.bench.timing import Timing
from fastdiff.runtime import memory
from fastdiff.runtime.native import core

if TYPE_CHECKING:
    from rich.table import Table


def heading(name: str) -> str:
    """Instruction set, threads, and where memory comes from."""
    pool = memory.statistics().limit >> 20
    return f"{name}: {core.isa()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {heap()} heap, " + (
        f"pool {pool} MiB" if pool else "no pool"
    )


def table(name: str, rows: Sequence[Row]) -> Table:
    """For rich's console. Times are medians with the 20th and 80th percentile of the rounds.

    "of limit" is the share of the copy's speed, or, where the case counts flops, of the matrix product's, both measured
    beside it.
    """
    from rich.table import Table

    made = Table(title=heading(name), title_justify="left")
    rate = "GFLOP/s" if any(row.case.flops for row in rows) else "GB/s"
    for column in ("shape", "dtype", "", "torch, us", "fastdiff, us", "ratio", rate, "of limit"):
        made.add_column(column, justify="left" if column in ("shape", "dtype", "") else "right", no_wrap=True)
    for row in rows:
        case = row.case
        made.add_row(
            ", ".join(map(str, case.shape)),
            str(case.dtype).removeprefix("torch."),
            ", ".join(word for word in (case.detail, "backward" if case.backward else "") if word),
            _time(row.torch),
            _time(row.ours),
            f"{row.ratio:.2f}x",
            f"{(case.flops or case.bytes) / row.ours.median / 1e9:.0f}",
            f"{100 * row.share:.0f}%",
            style="red" if row.slower else None,
        )
    return made


def verdict(rows: Sequence[Row]) -> str:
    """One line: how many there are, and which are slower than torch by more than their spread."""
    slower = [str(row.case) for row in rows if row.slower]
    return f"{len(rows)} cases, slower than torch: {', '.join(slower) or 'none'}"


def _time(timing: Timing) -> str:
    digits = 1 if timing.median < 1e-4 else 0
    return f"{1e6 * timing.median:.{digits}f} ({1e6 * timing.p20:.{digits}f}-{1e6 * timing.p80:.{digits}f})"
