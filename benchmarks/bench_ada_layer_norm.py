"""ada_layer_norm in C++ against torch's layer_norm with its modulation, and against the speed of a copy.

    python benchmarks/bench_ada_layer_norm.py

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
from fastdiff.ops.ada_layer_norm import ada_layer_norm, reference

# (shape, with gate and residual): DiT-XL/2 at 256 pixels, one guided sample and a batch of four, and at 512 pixels.
CASES = [((2, 256, 1152), False), ((2, 256, 1152), True), ((8, 1024, 1152), False), ((8, 1024, 1152), True)]
DTYPES = (torch.float32, torch.bfloat16)


def make(shape: tuple[int, int, int], gated: bool, dtype: torch.dtype) -> tuple[list[torch.Tensor], dict]:
    """As DiT's block has them: shift, scale and gate are views of one tensor."""
    shift, scale, gate = torch.randn(shape[0], 1, 6 * shape[2]).to(dtype).chunk(6, dim=-1)[:3]
    options = {"gate": gate, "residual": torch.randn(shape).to(dtype)} if gated else {}
    return [torch.randn(shape).to(dtype), scale, shift], options


def check(tensors: list[torch.Tensor], options: dict) -> None:
    """At most twice the error of torch, and a rounding of the output."""
    exact = reference(*(t.double() for t in tensors), **{k: t.double() for k, t in options.items()})
    ours, theirs = (float((f(*tensors, **options).double() - exact).abs().max()) for f in (ada_layer_norm, reference))
    if not ours <= 2 * theirs + float(exact.abs().max()) * torch.finfo(tensors[0].dtype).eps:
        raise SystemExit(f"ada_layer_norm is wrong here (error {ours:.2e}, torch's {theirs:.2e}); nothing was timed")


def main() -> None:
    heap = "reused" if os.environ.get("MALLOC_MMAP_THRESHOLD_") else "default"
    table = Table(title=f"ada_layer_norm, {core.isa()}, {torch.get_num_threads()} threads, heap {heap}")
    for heading in ("shape", "dtype", "gate, residual", "torch, us", "C++, us", "ratio", "GB/s", "of copy bandwidth"):
        table.add_column(heading)
    for dtype in DTYPES:
        for shape, gated in CASES:
            tensors, options = make(shape, gated, dtype)
            check(tensors, options)

            def run(backend: str, tensors=tensors, options=options) -> None:
                with fastdiff.use(backend):
                    ada_layer_norm(*tensors, **options)

            timings = interleave({"torch": lambda run=run: run("reference"), "cpu": lambda run=run: run("cpu")})
            theirs, ours = timings["torch"].median, timings["cpu"].median
            size = tensors[0].numel() * tensors[0].element_size()
            rate = size * (3 if gated else 2) / ours
            table.add_row(
                str(shape),
                str(dtype).removeprefix("torch."),
                "yes" if gated else "no",
                f"{1e6 * theirs:.0f}",
                f"{1e6 * ours:.0f}",
                f"{theirs / ours:.1f}x",
                f"{rate / 1e9:.0f}",
                f"{100 * rate / copy_bandwidth(size):.0f}%",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
