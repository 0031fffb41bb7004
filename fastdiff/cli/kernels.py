"""`fastdiff kernels`: what the Triton kernels need on each GPU, compiled ahead of time without GPU or driver."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from rich.console import Console
from rich.table import Table

from fastdiff.cli.console import print_json, progress
from fastdiff.errors import expect, unknown
from fastdiff.files import writable_file
from fastdiff.ops import TRITON_OPS

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Beside operators that have a kernel: those whose kernels are candidates alone, and what lies between operators.
COMPILED = (*TRITON_OPS, "conv2d", "linear", "pointwise")


def run(
    targets: Sequence[str], ops: Sequence[str], everything: bool, out: str | None, as_json: bool, jobs: int
) -> None:
    """See `fastdiff kernels --help`."""
    for name, known, kind in [(n, TARGETS, "target") for n in targets] + [(n, COMPILED, "op") for n in ops]:
        if name not in known:
            raise unknown(kind, name, known)
    require_triton()
    path = writable_file(out) if out else None  # said first if it cannot be written
    rows = collect(targets or TARGETS, ops or COMPILED, everything, jobs)
    if path:
        path.write_text(json.dumps({"kernels": rows}, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json({"kernels": rows})
    else:
        _print(rows)
    bad = [row for row in rows if row["fault"]]
    if bad:
        names = "; ".join(
            f"{r['target']} {r['op']} {r['kernel']} {r['dtype']} {r['detail']}: {r['fault']}" for r in bad
        )
        raise ValueError(f"{len(bad)} of {len(rows)} kernels are not as they should be: {names}")


def require_triton() -> None:
    """Raises NotImplementedError, saying why, where the kernels cannot be compiled."""
    if importlib.util.find_spec("triton") is None:
        raise NotImplementedError("Triton is not installed (python -m pip install triton; it has wheels for Linux)")
    expect(not os.environ.get("TRITON_INTERPRET"), "TRITON_INTERPRET is set, and nothing is compiled then")


def collect(
    targets: Sequence[str], ops: Sequence[str], everything: bool = False, jobs: int = 0
) -> list[dict[str, Any]]:
    """A row for each kernel, type and configuration, in the order of the catalogue; compiled by `jobs` processes."""
    from fastdiff.kernels.ahead_of_time.catalogue import entries

    wanted = [
        (target, op, index)
        for target in targets
        for op in ops
        for index, entry in enumerate(entries(op, target))
        if everything or entry.usual
    ]
    jobs = jobs or os.cpu_count() or 1
    if jobs == 1:
        return [measure(*case) for case in wanted]
    # Processes of their own: the compiler is not made for threads, and torch's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, progress() as bar:
        task = bar.add("compiling", total=len(wanted))
        rows = []
        for row in pool.map(_measure, wanted):
            rows.append(row)
            bar.advance(task)
    return rows


def _measure(case: tuple[str, str, int]) -> dict[str, Any]:
    return measure(*case)


_entries: dict[tuple[str, str], list[Any]] = {}


def measure(target: str, op: str, index: int) -> dict[str, Any]:
    """What entry `index` of an op for a target needs; Triton keeps what it has compiled on disk."""
    from fastdiff.kernels.ahead_of_time import catalogue, occupancy
    from fastdiff.kernels.ahead_of_time.compile import TARGETS, usage

    if (op, target) not in _entries:
        _entries[op, target] = list(catalogue.entries(op, target))
    entry = _entries[op, target][index]
    compiled = entry.launch.compile()
    found, (_, limit, device) = usage(compiled), TARGETS[target]
    warps = compiled.metadata.num_warps
    blocks = occupancy.resident_blocks(target, found.registers, found.shared, warps)
    cost = entry.cost(blocks * device.multiprocessors)
    faults = []
    if found.stack and target in ("sm_80", "sm_90"):
        faults.append(f"{found.stack} bytes of stack")
    if found.shared > limit:
        faults.append(f"{found.shared} bytes of shared memory, of {limit}")
    return {
        "target": target,
        "op": op,
        "kernel": entry.kernel,
        "dtype": entry.dtype,
        "detail": entry.detail,
        "usual": entry.usual,
        "warps": warps,
        "registers": found.registers,
        "stack": found.stack,
        "shared": found.shared,
        "blocks_a_multiprocessor": blocks,
        "occupancy": round(occupancy.occupancy(target, blocks, warps), 3),
        "matrix_instruction": found.matrix_instruction,
        "shape": entry.shape,
        "bytes_least": cost.least,
        "bytes_moved": cost.moved,
        "flops": cost.flops,
        "fault": ", ".join(faults),
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    headings = (
        "target",
        "kernel",
        "type",
        "",
        "warps",
        "reg",
        "stack",
        "shared",
        "occ.",
        "matrix",
        "shape",
        "bytes/least",
    )
    for heading in headings:
        right = heading in ("warps", "reg", "stack", "shared", "occ.", "bytes/least")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            row["target"], f"{row['op']} {row['kernel']}", row["dtype"], row["detail"], str(row["warps"]),
            str(row["registers"]), str(row["stack"]), str(row["shared"]), f"{100 * row['occupancy']:.0f}%",
            row["matrix_instruction"], row["shape"], f"{row['bytes_moved'] / row['bytes_least']:.2f}",
            style="red" if row["fault"] else None,
        )  # fmt: skip
    console = Console(highlight=False)
    # A table that is cut off at the width of a pipe would lose what it is for.
    if not console.is_terminal:
        console = Console(highlight=False, width=170)
    console.print(table)
    console.print(
        f"\n{len(rows)} kernels; registers and stack are bytes a thread, shared memory bytes a block. Occupancy and "
        "bytes are computed, not measured: no GPU was used."
    )
