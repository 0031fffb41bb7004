"""linear_combine in C++ against the same sums in torch, and against the speed of a copy.

python benchmarks/bench_linear_combine.py

The result is checked against float64 before anything is timed.
"""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

import fastdiff
from fastdiff.bench.timing import copy_bandwidth, interleave
from fastdiff.native import core
from fastdiff.ops.linear_combine import linear_combine, reference

# (shape, outputs, inputs): DDIM, 2M and a guided fourth-order multistep of a latent, and pictures in pixel space.
CASES = [
    ((1, 4, 64, 64), 1, 2),
    ((1, 4, 64, 64), 2, 3),
    ((8, 4, 128, 128), 2, 3),
    ((8, 4, 128, 128), 2, 6),
    ((4, 3, 512, 512), 2, 3),
]


def check(coefficients: list[list[float]], inputs: list[torch.Tensor]) -> None:
    exact = reference(coefficients, [x.double() for x in inputs])
    for ours, want, row in zip(linear_combine(coefficients, inputs), exact, coefficients):
        scale = float(sum(abs(c) * x.double().abs() for c, x in zip(row, inputs)).max())
        bound = len(inputs) * torch.finfo(torch.float32).eps * scale
        if not float((ours.double() - want).abs().max()) <= bound:
            raise SystemExit("linear_combine is wrong here; nothing was timed")


def main() -> None:
    table = Table(title=f"linear_combine, {core.isa()}, {torch.get_num_threads()} threads")
    for heading in ("shape", "outputs x inputs", "torch, us", "C++, us", "ratio", "of copy bandwidth"):
        table.add_column(heading)
    for shape, num_outputs, num_inputs in CASES:
        coefficients = torch.randn(num_outputs, num_inputs, dtype=torch.float64).tolist()
        inputs = [torch.randn(shape) for _ in range(num_inputs)]
        check(coefficients, inputs)

        def run(backend: str, coefficients=coefficients, inputs=inputs) -> None:
            with fastdiff.use(backend):
                linear_combine(coefficients, inputs)

        timings = interleave({"torch": lambda run=run: run("reference"), "cpu": lambda run=run: run("cpu")})
        theirs, ours = timings["torch"].median, timings["cpu"].median
        size = inputs[0].numel() * 4
        share = size * (num_inputs + num_outputs) / ours / copy_bandwidth(size)
        table.add_row(str(shape), f"{num_outputs} x {num_inputs}", f"{1e6 * theirs:.1f}", f"{1e6 * ours:.1f}",
                      f"{theirs / ours:.1f}x", f"{100 * share:.0f}%")  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
