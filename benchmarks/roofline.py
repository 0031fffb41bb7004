"""What the GPU kernels cannot be faster than, for the shapes of three models on three GPUs, beside what was measured.

    python benchmarks/roofline.py [--backward] [--json FILE] [--measured FILE ...]

Nothing is run. Times come from files of `fastdiff bench ops --sweep`, by default those in benchmarks/measured/.

A kernel's floor is the longer of two times: its bytes at the published bandwidth, its operations at the published peak.
"moved" are the bytes of its schedule, over the least that any schedule must move (see kernels/ahead_of_time/costs.py).
Times of a few microseconds are below what a launch takes, and are no prediction.

A second table has a row for each kernel and case that was measured in a CUDA graph: its floor from the data sheet, the
quickest of ours, of PyTorch's and of the designs that were tried ("prototype"), and the share of the floor in ours.

A third one has a row for each kernel of the package: its floor on an H100, its time and that of the design it was made
after, as far as the files have them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import roofline_kernels
import torch
from rich.console import Console
from rich.table import Table

from fastdiff.bench import cases, measured
from fastdiff.bench.cases.group_norm_silu import GROUPS
from fastdiff.kernels.ahead_of_time import costs
from fastdiff.kernels.ahead_of_time.compile import TARGETS
from fastdiff.kernels.ahead_of_time.costs import Cost
from fastdiff.kernels.attention.tiles import choose, most_splits_of_dkv, samples_at_once, splits_for
from fastdiff.runtime.candidates import is_ours
from fastdiff.runtime.device import Device


class Gpu(NamedTuple):
    """target: of ahead_of_time.TARGETS; bytes a second; operations a second of the tensor cores in half precision
    (dense) and of float32. Data sheets: A100 80GB SXM; H100 SXM; HGX B200, an eighth of it."""

    target: str
    bandwidth: float
    half: float
    single: float


GPUS = {
    "A100": Gpu("sm_80", 2.039e12, 312e12, 19.5e12),
    "H100": Gpu("sm_90", 3.35e12, 989e12, 67e12),
    "B200": Gpu("sm_100", 8e12, 2250e12, 75e12),
}
MEASURED = Path(__file__).parent / "measured"
SIZE = torch.float16.itemsize
OPS = ("ada_layer_norm", "attention", "group_norm_silu", "linear_combine", "residual_ada_layer_norm")


def forward(op: str, shape: tuple[int, ...], target: str) -> Cost:
    """What an op costs on a device."""
    device = TARGETS[target].device
    if op == "attention":
        batch, heads, queries, keys, dim = shape
        tile = choose(
            "forward", target, "half", dim, queries=queries, keys=keys, heads=batch * heads,
            available=device.multiprocessors,
        )  # fmt: skip
        programs = math.ceil(queries / tile.block_m) * batch * heads
        return costs.attention_forward(
            costs.Attention(*shape, SIZE), block_m=tile.block_m, resident=resident(device), device=device,
            splits=splits_for(programs, math.ceil(keys / tile.block_n), device.multiprocessors),
        )  # fmt: skip
    if op == "group_norm_silu":
        pixels = math.prod(shape[2:])
        return costs.group_norm_silu(*shape[:2], pixels, GROUPS, SIZE, adaptive=False, device=device)
    if op == "ada_layer_norm":
        return costs.ada_layer_norm(*shape, SIZE)
    if op == "residual_ada_layer_norm":
        return costs.residual_ada_layer_norm(*shape, SIZE)
    # x and the last m in float32, the model's two outputs; x, m and, twice, the next input of the model.
    return costs.linear_combine(math.prod(shape), [4, 4, SIZE, SIZE], [4, 4, SIZE, SIZE])


def backward(op: str, shape: tuple[int, ...], target: str) -> Cost | None:
    """What an op's gradients cost, all kernels together; None for the solver's step, which samples only."""
    device = TARGETS[target].device
    if op == "attention":
        batch, heads, queries, keys, dim = shape
        common: dict[str, Any] = dict(queries=queries, keys=keys, heads=batch * heads, available=device.multiprocessors)
        tile = choose("dkv", target, "half", dim, **common)
        at_once = samples_at_once(*shape, SIZE, device.l2_bytes)
        programs = math.ceil(keys / tile.block_n) * at_once * heads
        splits = splits_for(
            programs, math.ceil(queries / tile.block_m), device.multiprocessors, most_splits_of_dkv(queries, keys, SIZE)
        )
        return costs.attention_backward(
            costs.Attention(*shape, SIZE), block_m=choose("dq", target, "half", dim, **common).block_m,
            block_n=tile.block_n, resident=device.multiprocessors, device=device, splits=splits,
        )  # fmt: skip
    if op == "group_norm_silu":
        pixels = math.prod(shape[2:])
        return costs.group_norm_silu_backward(*shape[:2], pixels, GROUPS, SIZE, adaptive=False, device=device)
    if op == "ada_layer_norm":
        return costs.ada_layer_norm_backward(*shape, SIZE, device=device)
    if op == "residual_ada_layer_norm":
        return costs.residual_ada_layer_norm_backward(*shape, SIZE, device=device)
    return None


def resident(device: Device) -> int:
    """Program instances of attention that run at once: two a multiprocessor, as `fastdiff kernels` estimates."""
    return 2 * device.multiprocessors


def rows(with_backward: bool) -> Iterator[dict[str, Any]]:
    """One for each model, op, shape and GPU."""
    for model in cases.MODELS:
        for op in OPS:
            for shape in cases.shapes(op).get(model, ()):
                for name, gpu in GPUS.items():
                    found = [("", forward(op, shape, gpu.target))]
                    found += [("backward", backward(op, shape, gpu.target))] if with_backward else []
                    for part, cost in found:
                        if cost is None:
                            continue
                        peak = gpu.half if op == "attention" else gpu.single
                        memory, compute = cost.moved / gpu.bandwidth, cost.flops / peak
                        yield {
                            "model": model, "op": f"{op} {part}".strip(), "backward": bool(part),
                            "shape": list(shape), "gpu": name, **cost._asdict(), "seconds": max(memory, compute),
                            "least_seconds": max(cost.least / gpu.bandwidth, compute),
                            "bound": "memory" if memory >= compute else "compute",
                        }  # fmt: skip


def measured_rows(files: Iterable[measured.Measured]) -> Iterator[dict[str, Any]]:
    """One for each case that was measured in a graph on a GPU of GPUS. quickest: (candidate, microseconds) of "ours",
    "torch" and "prototype", None where there is none that was right."""
    for file in files:
        gpu = next((gpu for gpu in GPUS.values() if gpu.target == file.architecture), None)
        for case in file.cases if gpu is not None else ():
            if not case.graph:
                continue
            assert gpu is not None
            memory, compute = case.bytes / gpu.bandwidth, case.flops / gpu.half
            quickest: dict[str, tuple[str, float] | None] = dict.fromkeys(("ours", "torch", "prototype"))
            for name, microseconds in case.usable():
                whose = "prototype" if name.startswith("prototype") else "ours" if is_ours(name) else "torch"
                before = quickest[whose]
                if name != "copy" and (before is None or microseconds < before[1]):
                    quickest[whose] = name, microseconds
            yield {
                "device": file.device, "op": case.op, "part": case.part, "shape": list(case.shape),
                "detail": case.detail, "seconds": max(memory, compute),
                "bound": "memory" if memory >= compute else "compute", "quickest": quickest,
            }  # fmt: skip


def measured_table(found: list[dict[str, Any]]) -> Table:
    """One row a case."""
    made = Table(title="Measured in a CUDA graph, half precision: microseconds", title_justify="left")
    for heading in ("kernel", "shape", "floor", "ours", "PyTorch", "prototype", "of the floor"):
        made.add_column(heading)
    for row in found:
        said = {whose: "" if best is None else f"{best[1]:.1f} {best[0]}" for whose, best in row["quickest"].items()}
        ours = row["quickest"]["ours"]
        what = ", ".join(word for word in (row["op"], row["part"], row["detail"]) if word)
        made.add_row(
            what, "x".join(map(str, row["shape"])), f"{1e6 * row['seconds']:.2f}{row['bound'][0]}", said["ours"],
            said["torch"], said["prototype"].removeprefix("prototype "),
            "" if ours is None else f"{1e8 * row['seconds'] / ours[1]:.0f}%",
        )  # fmt: skip
    return made


def table(found: list[dict[str, Any]]) -> Table:
    """One row a model, op and shape; the GPUs side by side."""
    made = Table(title="Floors in microseconds, half precision", title_justify="left")
    for heading in ("model", "kernel", "shape"):
        made.add_column(heading, no_wrap=True)
    for heading in ("GFLOP", "least MB", *(f"{name} us" for name in GPUS), "moved"):
        made.add_column(heading, justify="right", no_wrap=True)
    for start in range(0, len(found), len(GPUS)):
        group = found[start : start + len(GPUS)]
        first = group[0]
        floors = [f"{1e6 * row['seconds']:.2f}{'c' if row['bound'] == 'compute' else 'm'}" for row in group]
        moved = "/".join(f"{row['moved'] / row['least']:.2f}" for row in group)
        made.add_row(
            first["model"].split(",")[0], first["op"], "x".join(map(str, first["shape"])),
            f"{first['flops'] / 1e9:.3f}", f"{first['least'] / 1e6:.2f}", *floors, moved,
        )  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backward", action="store_true", help="the kernels of the gradients as well")
    parser.add_argument("--json", help="a file for the rows")
    parser.add_argument("--measured", nargs="*", default=sorted(MEASURED.glob("*.json")), help="files of measurements")
    options = parser.parse_args()
    files = [measured.load(path) for path in options.measured]
    taken, h100 = list(measured_rows(files)), GPUS["H100"]
    every = roofline_kernels.rows(files, *h100)
    found = sorted(
        rows(options.backward), key=lambda row: (row["model"], row["op"], row["shape"], list(GPUS).index(row["gpu"]))
    )
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=150)
    console.print(table(found))
    above = [row for row in found if row["moved"] > 1.1 * row["least"]]
    console.print(
        f"m: bound by memory, c: by operations. {len(above)} of {len(found)} move more than 1.1x the least bytes"
    )
    for row in above:
        console.print(
            f"  {row['gpu']}: {row['op']} {'x'.join(map(str, row['shape']))}, {row['moved'] / row['least']:.2f}x: "
            f"{math.ceil((row['moved'] - row['least']) / 1e6)} MB more, which L2 does not keep"
        )
    if taken:
        console.print(measured_table(taken))
    console.print(roofline_kernels.table(every))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"floors": found, "measured": taken, "kernels": every}, file, indent=1)


if __name__ == "__main__":
    main()
