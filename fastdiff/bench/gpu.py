"""The GPU kernels against torch's, on the device: each is checked against float64 before it is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.bench.compare import Inputs
from fastdiff.bench.compare import check as check_results
from fastdiff.bench.timing import Timing

Function = Callable[..., Any]


@dataclass(frozen=True)
class GpuCase:
    """One row of the table.

    make: positional and keyword arguments of all functions. ours: the kernel; theirs: torch's, by name, the first of
    which is also the oracle when it is given float64. bytes: the least that must be moved; flops: of matrix products.
    reduction: how many numbers are summed up for one of the result.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Inputs] = field(repr=False)
    ours: Function = field(repr=False)
    theirs: dict[str, Function] = field(repr=False)
    bytes: int
    flops: int = 0
    reduction: int = 1

    def __str__(self) -> str:
        return f"{self.op}-{'x'.join(map(str, self.shape))}-{str(self.dtype).removeprefix('torch.')}"


def cases(device: str, small: bool = False) -> Iterator[GpuCase]:
    """Of every op. small: sizes for a check under a memory checker, which is slow."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for dtype in dtypes:
        yield from _attention(device, dtype, small)
        yield from _group_norm_silu(device, dtype, small)
        yield from _ada_layer_norm(device, dtype, small)
        yield from _linear_combine(device, dtype, small)


def check(case: GpuCase) -> None:
    """Raises AssertionError if the kernel errs more than twice as much as torch at the same dtype, plus rounding."""
    torch.manual_seed(0)
    arguments, options = case.make()
    check_results(case, case.ours, next(iter(case.theirs.values())), arguments, options)


def time_case(case: GpuCase, rounds: int = 30) -> dict[str, Timing]:
    """Seconds a call of the kernel ("ours") and of torch's functions, in turns. Needs a CUDA device."""
    torch.manual_seed(0)
    arguments, options = case.make()
    functions = {"ours": case.ours} | case.theirs
    if "compile" in functions:
        functions["compile"] = torch.compile(functions["compile"])
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")  # no result may lie in the cache already
    for function in functions.values():
        for _ in range(5):
            function(*arguments, **options)
    for _ in range(rounds):
        for name, function in functions.items():
            flush.zero_()
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            started.record()
            function(*arguments, **options)
            ended.record()
            ended.synchronize()
            seconds[name].append(started.elapsed_time(ended) / 1e3)
    quantiles = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    return {name: Timing(*torch.tensor(s).double().quantile(quantiles).tolist()) for name, s in seconds.items()}


def _attention(device: str, dtype: torch.dtype, small: bool) -> Iterator[GpuCase]:
    from fastdiff.kernels.attention import attention_forward

    # Stable Diffusion's levels, with the prompt; SDXL's; DiT-XL/2's.
    shapes = [(2, 8, 4096, 4096, 40), (2, 8, 4096, 77, 40), (2, 20, 1024, 1024, 64), (2, 16, 1024, 1024, 72)]
    for batch, heads, queries, keys, dim in [(1, 2, 40, 33, 40), (1, 1, 20, 77, 72)] if small else shapes:

        def make(sizes: tuple[int, ...] = (batch, heads, queries, keys, dim)) -> Inputs:
            b, h, q, k, d = sizes
            return tuple(torch.randn(b, s, h, d, device=device).to(dtype).transpose(1, 2) for s in (q, k, k)), {}

        yield GpuCase(
            "attention", (batch, heads, queries, keys, dim), dtype, make,
            lambda *t: attention_forward(*t)[0], {"sdpa": F.scaled_dot_product_attention},
            bytes=2 * batch * heads * (queries + keys) * dim * dtype.itemsize,
            flops=4 * batch * heads * queries * keys * dim, reduction=max(keys, dim),
        )  # fmt: skip


def _group_norm_silu(device: str, dtype: torch.dtype, small: bool) -> Iterator[GpuCase]:
    from fastdiff.kernels.group_norm_silu import group_norm_silu

    def eager(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias))

    shapes = [(2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (1, 512, 128, 128), (1, 128, 512, 512)]
    for shape in [(2, 8, 5, 7)] if small else shapes:
        for last in (False, True):

            def make(shape: tuple[int, ...] = shape, last: bool = last) -> Inputs:
                layout = torch.channels_last if last else torch.contiguous_format
                x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)
                weight, bias = torch.randn(2, shape[1], device=device).to(dtype)
                return (x, 4 if small else 32, weight, bias), {}

            yield GpuCase(
                "group_norm_silu", shape, dtype, make, group_norm_silu, {"group_norm": eager, "compile": eager},
                bytes=2 * math.prod(shape) * dtype.itemsize, reduction=math.prod(shape[1:]) // (4 if small else 32),
            )  # fmt: skip


def _ada_layer_norm(device: str, dtype: torch.dtype, small: bool) -> Iterator[GpuCase]:
    from fastdiff.kernels.ada_layer_norm import ada_layer_norm
    from fastdiff.ops import ada_layer_norm as op

    for batch, rows, channels in [(2, 3, 40)] if small else [(2, 256, 1152), (8, 1024, 1152)]:

        def make(shape: tuple[int, ...] = (batch, rows, channels)) -> Inputs:
            b, _, c = shape
            x = torch.randn(shape, device=device).to(dtype)
            scale, shift = torch.randn(b, 1, 6 * c, device=device).to(dtype).chunk(6, dim=-1)[:2]
            return (x, scale, shift), {}

        yield GpuCase(
            "ada_layer_norm", (batch, rows, channels), dtype, make, ada_layer_norm,
            {"layer_norm": op.plain, "compile": op.plain},
            bytes=2 * batch * rows * channels * dtype.itemsize, reduction=channels,
        )  # fmt: skip


def _linear_combine(device: str, dtype: torch.dtype, small: bool) -> Iterator[GpuCase]:
    from fastdiff.kernels.linear_combine import linear_combine
    from fastdiff.ops import linear_combine as op

    for shape in [(33,)] if small else [(2, 4, 64, 64), (8, 4, 128, 128), (4, 3, 512, 512)]:

        def make(shape: tuple[int, ...] = shape) -> Inputs:
            return ([[0.7, -0.2, 1.1], [0.3, 0.9, -0.4]], list(torch.randn(3, *shape, device=device).to(dtype))), {}

        yield GpuCase(
            "linear_combine", shape, dtype, make, linear_combine, {"eager": op.plain, "compile": op.plain},
            bytes=5 * math.prod(shape) * dtype.itemsize, reduction=3,
        )  # fmt: skip
