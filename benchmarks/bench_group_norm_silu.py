"""group_norm_silu in C++ against torch's group_norm and silu, and against the speed of a copy.

    python benchmarks/bench_group_norm_silu.py

The result is checked against float64 before anything is timed. torch maps fresh pages for every large result: run it
with MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 as well, to see the kernel apart from that.
"""

from __future__ import annotations

import os

import torch
from rich.console import Console
from rich.table import Table

import fastdiff
from fastdiff.bench.timing import copy_bandwidth, interleave
from fastdiff.native import core
from fastdiff.ops.group_norm_silu import group_norm_silu, reference

# Of Stable Diffusion's U-Net, a guided sample, and of the last level of a VAE's decoder.
CASES = [((2, 320, 64, 64), False), ((2, 320, 64, 64), True), ((2, 1280, 16, 16), False), ((1, 128, 512, 512), False)]
GROUPS = 32


def check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """At most twice the error of torch, and a rounding of the output."""
    exact = reference(x.double(), GROUPS, weight.double(), bias.double())
    ours, theirs = (
        float((f(x, GROUPS, weight, bias).double() - exact).abs().max()) for f in (group_norm_silu, reference)
    )
    if not ours <= 2 * theirs + float(exact.abs().max()) * torch.finfo(x.dtype).eps:
        raise SystemExit(f"group_norm_silu is wrong here (error {ours:.2e}, torch's {theirs:.2e}); nothing was timed")


def main() -> None:
    heap = "reused" if os.environ.get("MALLOC_MMAP_THRESHOLD_") else "default"
    table = Table(title=f"group_norm_silu, {core.isa()}, {torch.get_num_threads()} threads, heap {heap}")
    for heading in ("shape", "layout", "dtype", "torch, us", "C++, us", "ratio", "time of a copy, us", "of the copy"):
        table.add_column(heading)
    for dtype in (torch.float32, torch.bfloat16):
        for shape, last in CASES:
            x, weight, bias = torch.randn(shape).to(dtype), *torch.randn(2, shape[1]).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last) if last else x
            check(x, weight, bias)

            def run(backend: str, x=x, weight=weight, bias=bias) -> None:
                with fastdiff.use(backend):
                    group_norm_silu(x, GROUPS, weight, bias)

            timings = interleave({"torch": lambda run=run: run("reference"), "cpu": lambda run=run: run("cpu")})
            theirs, ours = timings["torch"].median, timings["cpu"].median
            size = x.numel() * x.element_size()
            copy = 2 * size / copy_bandwidth(size)
            table.add_row(
                str(shape),
                "channels-last" if last else "contiguous",
                str(dtype).removeprefix("torch."),
                f"{1e6 * theirs:.0f}",
                f"{1e6 * ours:.0f}",
                f"{theirs / ours:.1f}x",
                f"{1e6 * copy:.0f}",
                f"{ours / copy:.2f}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
