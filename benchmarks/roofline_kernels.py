"""A row for each kernel of kernels/, at a shape that models have: what bounds it, and where its time is in the files of
benchmarks/measured/. benchmarks/roofline.py shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from rich.table import Table

from fastdiff.bench.measured import Measured, MeasuredCase
from fastdiff.kernels.ahead_of_time import costs
from fastdiff.kernels.ahead_of_time.compile import TARGETS
from fastdiff.kernels.ahead_of_time.costs import Attention, Cost

SIZE = torch.float16.itemsize
DEVICE = TARGETS["sm_90"].device
NOT_MEASURED = "not measured"


class Case(NamedTuple):
    """Of a file: as MeasuredCase has them."""

    op: str
    shape: tuple[int, ...]
    detail: str = ""
    part: str = ""


class Kernel(NamedTuple):
    """name: of the kernel, or of those of one call. matrix: its operations are those of tensor cores. measured: where
    its time is, if anywhere. ours: a pattern of the names of candidates that run this kernel; design: of designs it
    was made after, "" where there is none."""

    name: str
    shape: tuple[int, ...]
    cost: Cost
    matrix: bool = False
    measured: tuple[Case, ...] = ()
    ours: str = ""
    design: str = ""


def _attention() -> Iterator[Kernel]:
    large, prompt, wide = ((2, 8, 4096, 4096, 40), (2, 8, 4096, 77, 40), (1, 1, 4096, 4096, 512))
    of = {shape: Attention(*shape, SIZE) for shape in (large, prompt, wide)}
    options: dict[str, Any] = dict(resident=2 * DEVICE.multiprocessors, device=DEVICE)

    def forward(name: str, shape: tuple[int, ...], **where: Any) -> Kernel:
        return Kernel(name, shape, costs.attention_forward(of[shape], block_m=64, **options), True, **where)

    in_files = Case("attention", (2, 8, 4096, 40), "4096 keys")
    yield forward("attention", large, measured=(in_files,), ours="triton( .*)?")
    yield forward("attention for Hopper", large, measured=(in_files,), ours="gluon.*", design="prototype gl .*")
    few = Case("attention", (2, 8, 4096, 40), "77 keys")
    yield forward("attention to few keys", prompt, measured=(few,), ours="few_keys", design="prototype few .*")
    one_head = Case("attention", (1, 1, 4096, 512), "4096 keys")
    yield forward("attention of one wide head", wide, measured=(one_head,), ours="triton( .*)?")
    dq = costs.attention_backward_dq(of[large], block_m=64, **options)
    dkv = costs.attention_backward_dkv(of[large], block_n=64, **options)
    for part, cost in (("dq", dq), ("dkv", dkv)):
        yield Kernel(f"attention, {part}", large, cost, True, (in_files._replace(part=part),), "triton .*")


def _norms() -> Iterator[Kernel]:
    def group_norm(shape: tuple[int, ...], last: bool) -> Cost:
        pixels = math.prod(shape[2:])
        return costs.group_norm_silu(*shape[:2], pixels, 32, SIZE, adaptive=False, device=DEVICE, channels_last=last)

    level, low = (2, 320, 64, 64), (2, 1280, 16, 16)
    last, first = Case("group_norm_silu", level, "channels last"), Case("group_norm_silu", level)
    yield Kernel(
        "group_norm_silu, rows",
        level,
        group_norm(level, True),
        False,
        (last,),
        "triton( rows.*)?",
        "prototype rows2 .*",
    )
    whole = last._replace(shape=low)
    cost, design = group_norm(low, True), "prototype one program a group"
    yield Kernel("group_norm_silu, a group each", low, cost, False, (whole,), "triton( a group.*)?", design)
    yield Kernel("group_norm_silu, parts", level, group_norm(level, True), False, (last,), r"triton( \d+)? parts.*")
    yield Kernel(
        "group_norm_silu, contiguous",
        level,
        group_norm(level, False),
        False,
        (first,),
        r"triton( whole.*| \d+ parts.*)?",
    )
    yield Kernel("group_norm_silu, runs", level, group_norm(level, False), False, (first,), "triton flat.*")
    gradient = costs.group_norm_silu_backward(*level[:2], 64 * 64, 32, SIZE, adaptive=False, device=DEVICE)
    yield Kernel("group_norm_silu, gradients", level, gradient)
    numbers = math.prod(level)
    added = last._replace(part="with bias and residual in front, the sum written out")
    swept = Case("add_group_norm_silu", level, "residual")
    four = Cost(13 * numbers, *[4 * numbers * SIZE] * 2)
    yield Kernel("add_group_norm_silu", level, four, False, (added, swept), "triton( rows.*)?", "prototype rows2 .*")

    tokens = (2, 4096, 320)
    plain = Case("ada_layer_norm", tokens, "", "without modulation")
    cost = costs.ada_layer_norm(*tokens, SIZE)
    yield Kernel("ada_layer_norm", tokens, cost, False, (plain,), "triton( .*)?", "prototype rows.*")
    yield Kernel("ada_layer_norm, gradients", tokens, costs.ada_layer_norm_backward(*tokens, SIZE, device=DEVICE))
    cost, plain = costs.residual_ada_layer_norm(*tokens, SIZE, gate=False), plain._replace(op="residual_ada_layer_norm")
    yield Kernel("residual_ada_layer_norm", tokens, cost, False, (plain,), "triton( .*)?", "prototype rows.*")
    cost = costs.residual_ada_layer_norm_backward(*tokens, SIZE, device=DEVICE)
    yield Kernel("residual_ada_layer_norm, gradients", tokens, cost)


def _products() -> Iterator[Kernel]:
    def linear(rows: int, inputs: int, columns: int, extra: int) -> Cost:
        numbers = rows * inputs + inputs * columns + extra
        return Cost(2 * rows * inputs * columns, *[numbers * SIZE] * 2)

    def conv2d(n: int, c: int, height: int, width: int, taps: int, weights: int, results: int) -> Cost:
        numbers = n * c * height * width + c * c * weights + n * c * height * width * results
        return Cost(2 * n * height * width * c * c * taps, *[numbers * SIZE] * 2)

    shape, modulation = (8192, 320, 320), (2, 1152, 28 * 6912)
    in_files = Case("linear", shape, "bias+residual", "rows in one")
    cost, swept = linear(*shape, 2 * 8192 * 320), Case("linear", (2, 4096, 320, 320), "residual")
    yield Kernel("linear", shape, cost, True, (in_files, swept), "triton( .*)?", "prototype .*")
    unit = (8192, 320, 2560)
    cost, where = linear(*unit, 8192 * 1280), in_files._replace(shape=unit, detail="geglu")
    swept = Case("linear", (2, 4096, 320, 2560), "geglu")
    yield Kernel("linear, gated unit", unit, cost, True, (where, swept), "triton( .*)?", "prototype fused .*")
    cost, where = linear(*modulation, 2 * modulation[2]), Case("linear", modulation, "", "the modulation of all blocks")
    yield Kernel(
        "linear, few rows",
        modulation,
        cost,
        False,
        (where, Case("linear", (2, 1, *modulation[1:]))),
        "triton",
        "prototype one Triton launch .*",
    )
    low, large = (2, 1280, 8, 8), (2, 640, 32, 32)
    where = Case("conv2d", low, "", "with bias, temb or residual")
    yield Kernel(
        "conv2d",
        low,
        conv2d(*low, 9, 9, 2),
        True,
        (where, Case("conv2d", low, "residual")),
        "triton( .*)?",
        "prototype ptr .*",
    )
    where, design = Case("conv2d", large, "upsampled", "with bias"), "prototype phases ptr .*"
    both = where, Case("conv2d", large, "upsampled")
    yield Kernel("conv2d, upsampled", large, conv2d(*large, 16, 16, 4), True, both, "triton by phases.*", design)


def _pointwise() -> Iterator[Kernel]:
    def moved(numbers: int) -> Cost:
        return Cost(4 * numbers, *[numbers * SIZE] * 2)

    level, tokens, image = (2, 320, 64, 64), (8192, 2560), (2, 640, 32, 32)
    where = Case("conv2d", level, "", "only the addition of bias + residual")
    yield Kernel("add_bias", level, moved(3 * math.prod(level)), False, (where,), "", "prototype addition alone.*")
    where = Case("linear", (8192, 320, 2560), "geglu", "geglu: elementwise alone")
    yield Kernel("gated", tokens, moved(8192 * 3840), False, (where,), "", "prototype elementwise alone .*")
    yield Kernel("phases", (640, 640, 3, 3), moved(640 * 640 * 25))
    yield Kernel("interleave", image, moved(2 * 640 * 4 * (33 * 33 + 32 * 32)))
    state = (2, 4, 64, 64)
    yield Kernel(
        "linear_combine", state, costs.linear_combine(math.prod(state), [4, 4, SIZE, SIZE], [4, 4, SIZE, SIZE])
    )


def kernels() -> list[Kernel]:
    """All of them."""
    return [*_attention(), *_norms(), *_products(), *_pointwise()]


def rows(
    files: Iterable[Measured], architecture: str, bandwidth: float, half: float, single: float
) -> list[dict[str, Any]]:
    """One a kernel. Microseconds on a GPU of this architecture, bytes and operations a second: "floor"; "ours" and
    "design", the quickest of those that were measured in a graph, with "" or what is to be said of it, or None. What
    was found wrong is left out."""
    found: dict[Case, MeasuredCase] = {}
    for file in sorted(files, key=lambda file: file.date):
        if file.architecture == architecture:
            found |= {Case(c.op, c.shape, c.detail, c.part): c for c in file.cases if c.graph}
    made = []
    for kernel in kernels():
        cases = [found[case] for case in kernel.measured if case in found]
        memory, compute = kernel.cost.least / bandwidth, kernel.cost.flops / (half if kernel.matrix else single)
        made.append({
            "kernel": kernel.name, "shape": list(kernel.shape), "floor": 1e6 * max(memory, compute),
            "bound": "memory" if memory >= compute else "compute", "ours": _quickest(cases, kernel.ours),
            "design": _quickest(cases, kernel.design),
        })  # fmt: skip
    return made


def _quickest(cases: list[MeasuredCase], pattern: str) -> tuple[float, str] | None:
    times = [t for case in cases for name, t in case.times.items() if re.fullmatch(pattern, name)]
    for said, found in (("", [t for t in times if t.fault is None]), ("not checked", times)):
        right = [t.microseconds for t in found if t.fault is None or t.error is None]
        if right:
            return min(right), said
    return None


def table(found: list[dict[str, Any]]) -> Table:
    """One row a kernel."""
    made = Table(title="Every kernel, on an H100: microseconds, half precision", title_justify="left")
    for heading in ("kernel", "shape", "floor", "measured", "its design, measured", "of the floor"):
        made.add_column(heading)
    for row in found:
        ours, design = (
            NOT_MEASURED if row[whose] is None else f"{row[whose][0]:.1f} {row[whose][1]}".strip()
            for whose in ("ours", "design")
        )
        of = "" if row["ours"] is None else f"{100 * row['floor'] / row['ours'][0]:.0f}%"
        shape, floor = "x".join(map(str, row["shape"])), f"{row['floor']:.2f}{row['bound'][0]}"
        made.add_row(row["kernel"], shape, floor, ours, design, of)
    return made
