"""`fastdiff bench gpu`: the GPU kernels checked on the device, and timed against PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastdiff.bench import gpu
from fastdiff.bench.cases import Case
from fastdiff.cli.console import console, print_json
from fastdiff.errors import unknown
from fastdiff.files import writable_file
from fastdiff.ops import OPS
from fastdiff.runtime import triton as gpu_kernels

# What runs under the memory checker: small cases of the ops that are named.
CHECK = """
import sys
from fastdiff.bench.gpu import cases, check
for case in cases(small=True):
    if case.op in sys.argv[1:]:
        check(case, "cuda")
"""


def run(ops: Sequence[str], memory_checker: bool, out: str | None, as_json: bool) -> None:
    """See `fastdiff bench gpu --help`."""
    for name in ops:
        if name not in OPS:
            raise unknown("op", name, OPS)
    ops = ops or tuple(OPS)
    reason = gpu_kernels.unavailable()
    if reason is None and not torch.cuda.is_available():
        reason = "torch sees no GPU"
    if reason is not None:
        raise NotImplementedError(f"no GPU kernels to measure: {reason}")
    path = writable_file(out) if out else None  # said first if it cannot be written
    if memory_checker:
        check_memory(ops)
    rows = []
    for case in gpu.cases():
        if case.op in ops:
            gpu.check(case, "cuda")
            rows.append(record(case, gpu.time_case(case)))
            console.print(f"{case.op}-{case}: checked, {1e6 * rows[-1]['seconds']['ours']['median']:.1f} us")
    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
    if path:
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(facts)
    else:
        Console(highlight=False).print(table(facts))


def measured(
    ops: Sequence[str], device: torch.device, *, record_graph: gpu.Record = gpu.recorded
) -> list[dict[str, Any]]:
    """The rows of `fastdiff bench ops --device cuda`: what runs if nobody chooses, against PyTorch."""
    for name in ops:
        if name not in OPS:
            raise unknown("op", name, OPS)
    rows = []
    for case in gpu.cases():
        if not ops or case.op in ops:
            gpu.check(case, str(device), "auto")
            timings = gpu.time_case(case, device=device, backend="auto", record=record_graph)
            rows.append(record(case, timings))
            console.print(f"{case.op}-{case}: checked, {1e6 * rows[-1]['seconds']['ours']['median']:.1f} us")
    return rows


def check_memory(ops: Sequence[str]) -> None:
    """Small cases under compute-sanitizer. Raises RuntimeError with what it found; says where there is none."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        console.print("no compute-sanitizer on the PATH: addresses are not checked")
        return
    command = [tool, "--error-exitcode", "86", sys.executable, "-c", CHECK, *ops]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"compute-sanitizer: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    console.print("compute-sanitizer: no bad address")


def record(case: Case, timings: dict[str, Any]) -> dict[str, Any]:
    """A row, as JSON holds it; "ratio" is the fastest of torch's times over ours."""
    best = min((name for name in timings if name != "ours"), key=lambda name: timings[name].median)
    return {
        "name": f"{case.op} {case}",
        "op": case.op,
        "shape": list(case.shape),
        "dtype": case.type_name,
        "detail": case.detail,
        "bytes": case.bytes,
        "flops": case.flops,
        "seconds": {name: asdict(timing) for name, timing in timings.items()},
        "baseline": best,
        "ratio": timings[best].median / timings["ours"].median,
    }


def table(facts: dict[str, Any]) -> Table:
    """Medians in microseconds."""
    made = Table(title=f"{facts['device']}, torch {facts['torch']}", title_justify="left")
    for heading in ("op", "shape", "type", "", "fastdiff, us", "torch, us", "ratio", "GB/s", "TFLOP/s"):
        made.add_column(heading, justify="left" if heading in ("op", "shape", "type", "") else "right", no_wrap=True)
    for row in facts["rows"]:
        seconds = {name: timing["median"] for name, timing in row["seconds"].items()}
        theirs = ", ".join(f"{name} {1e6 * s:.1f}" for name, s in seconds.items() if name != "ours")
        made.add_row(
            row["op"], "x".join(map(str, row["shape"])), row["dtype"], row["detail"],
            f"{1e6 * seconds['ours']:.1f}", theirs,
            f"{row['ratio']:.2f}x", f"{row['bytes'] / seconds['ours'] / 1e9:.0f}",
            f"{row['flops'] / seconds['ours'] / 1e12:.1f}" if row["flops"] else "",
            style="red" if row["ratio"] < 1 else None,
        )  # fmt: skip
    return made
