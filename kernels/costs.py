"""What kernels must do and what their schedules do: operations, least bytes, bytes moved through memory.

Bytes are those of device memory. What is read again counts once while all that is read meanwhile fits in the second
cache, and every time where it does not. Nothing here is measured.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fastdiff.kernels.ada_layer_norm_backward import rows_of_an_instance
from fastdiff.kernels.attention_tiles import samples_at_once
from fastdiff.kernels.group_norm_plan import plan


class Device(NamedTuple):
    """multiprocessors; bytes of the second cache."""

    processors: int
    second_cache: int


# By ahead_of_time.TARGETS: A100, H100 SXM, B200, MI300X.
DEVICES = {
    "sm_80": Device(108, 40 << 20),
    "sm_90": Device(132, 50 << 20),
    "sm_100": Device(148, 126 << 20),
    "gfx942": Device(304, 256 << 20),
}


class Cost(NamedTuple):
    """flops: multiplications and additions; least: bytes of all inputs and outputs once; moved: by the schedule."""

    flops: int
    least: int
    moved: int


def attention_forward(
    batch: int, heads: int, queries: int, keys: int, dim: int, size: int, *,
    block_m: int, resident: int, device: Device, splits: int = 1,
) -> Cost:  # fmt: skip
    """size: bytes of a number. resident: program instances that run at once; each has block_m queries of a head and
    reads all of its keys and values, and those of a head run one after the other. splits: of the keys, whose results in
    float32 are combined."""
    groups = batch * heads
    tiles = math.ceil(queries / block_m)
    q, kv, lse = groups * queries * dim * size, 2 * groups * keys * dim * size, groups * queries * 4
    least = 2 * q + kv + lse
    moved = least + kv * again(tiles, groups, kv, resident, device)
    moved += splits * groups * queries * (dim + 1) * 4 if splits > 1 else 0
    return Cost(4 * groups * queries * keys * dim, least, moved)


def attention_backward_dq(
    batch: int, heads: int, queries: int, keys: int, dim: int, size: int, *, block_m: int, resident: int, device: Device
) -> Cost:  # fmt: skip
    """q, k, v, the gradient, the log-sum-exp and delta are read, dq is written."""
    groups = batch * heads
    tiles = math.ceil(queries / block_m)
    q, kv, row = groups * queries * dim * size, 2 * groups * keys * dim * size, groups * queries * 4
    least = 3 * q + kv + 2 * row
    return Cost(6 * groups * queries * keys * dim, least, least + kv * again(tiles, groups, kv, resident, device))


def attention_backward_dkv(
    batch: int, heads: int, queries: int, keys: int, dim: int, size: int, *, block_n: int, resident: int, device: Device
) -> Cost:  # fmt: skip
    """The same are read, dk and dv are written; program instances have block_n keys and read all queries."""
    groups = batch * heads
    tiles = math.ceil(keys / block_n)
    q, kv, row = groups * queries * dim * size, 2 * groups * keys * dim * size, groups * queries * 4
    least = 2 * q + 2 * kv + 2 * row
    shared = 2 * q + 2 * row
    return Cost(
        8 * groups * queries * keys * dim, least, least + shared * again(tiles, groups, shared, resident, device)
    )


def attention_delta(batch: int, heads: int, queries: int, dim: int, size: int) -> Cost:
    """Sums of out times its gradient over the head dimension."""
    rows = batch * heads * queries
    least = rows * (2 * dim * size + 4)
    return Cost(2 * rows * dim, least, least)


def again(tiles: int, groups: int, shared: int, resident: int, device: Device) -> int:
    """How often, after the first time, what the tiles of a group share comes from memory. shared: bytes of all
    groups."""
    at_once = min(groups, math.ceil(resident / tiles) + 1)
    if shared // groups * at_once <= device.second_cache:
        return 0
    return max(0, math.ceil(tiles / resident) - 1)


def attention_backward(
    batch: int, heads: int, queries: int, keys: int, dim: int, size: int, *,
    block_m: int, block_n: int, resident: int, device: Device, splits: int = 1,
) -> Cost:  # fmt: skip
    """All three kernels, for as many samples at a time as kernels/attention_backward.py takes. splits: of the queries,
    whose dk and dv in float32 are added."""
    at_once = samples_at_once(batch, heads, queries, keys, dim, size, device.second_cache)
    parts = [
        attention_delta(at_once, heads, queries, dim, size),
        attention_backward_dq(
            at_once, heads, queries, keys, dim, size, block_m=block_m, resident=resident, device=device
        ),
        attention_backward_dkv(
            at_once, heads, queries, keys, dim, size, block_n=block_n, resident=resident, device=device
        ),
    ]
    q, k, row = (at_once * heads * n for n in (queries * dim * size, keys * dim * size, queries * 4))
    least = 4 * q + 4 * k + row  # q, out, its gradient, dq; k, v, dk, dv
    if 3 * q + 2 * k <= device.second_cache:
        moved = least + row + sum(part.moved - part.least for part in parts)  # delta leaves the cache once
    else:
        moved = sum(part.moved for part in parts)
    moved += splits * 2 * at_once * heads * keys * dim * 4 if splits > 1 else 0
    flops = sum(part.flops for part in parts)
    return Cost(*(value * batch // at_once for value in (flops, least, moved)))


def group_norm_silu(
    samples: int, channels: int, pixels: int, groups: int, size: int, *, adaptive: bool, device: Device,
    channels_last: bool = False,
) -> Cost:  # fmt: skip
    """Groups that do not stay in registers are read twice, the second time from the second cache where they fit it."""
    numbers = samples * channels * pixels
    cut = plan(
        samples, groups, channels // groups, pixels, size, channels_last=channels_last, processors=device.processors,
        second_cache=device.second_cache,
    )  # fmt: skip
    least = 2 * numbers * size + (2 + 2 * samples * adaptive) * channels * size
    moved = least
    if not cut.whole:
        moved += samples * groups * cut.parts * 8
        at_once = cut.pairs * (channels // groups) * pixels * size
        moved += numbers * size if at_once > device.second_cache else 0
    return Cost(12 * numbers, least, moved)


def group_norm_silu_backward(
    samples: int, channels: int, pixels: int, groups: int, size: int, *, adaptive: bool, device: Device,
    channels_last: bool = False,
) -> Cost:  # fmt: skip
    """Statistics, sums of the channels, and dx: x is read three times, the gradient twice."""
    numbers = samples * channels * pixels
    cut = plan(
        samples, groups, channels // groups, pixels, size, channels_last=channels_last, processors=device.processors,
        second_cache=device.second_cache, tensors=2, whole=False,
    )  # fmt: skip
    least = 3 * numbers * size + (4 + 4 * samples * adaptive) * channels * size
    moved = least + samples * (groups + channels) * cut.parts * 8
    at_once = 2 * cut.pairs * (channels // groups) * pixels * size
    return Cost(30 * numbers, least, moved + (3 * numbers * size if at_once > device.second_cache else 0))


def ada_layer_norm(batch: int, rows: int, channels: int, size: int, *, gated: bool) -> Cost:
    """scale and shift, and with a gate that and a residual; a row stays in registers."""
    numbers = batch * rows * channels
    least = (2 + gated) * numbers * size + (2 + gated) * batch * channels * size
    return Cost((11 + 2 * gated) * numbers, least, least)


def ada_layer_norm_backward(
    batch: int, rows: int, channels: int, size: int, *, gated: bool, device: Device
) -> Cost:  # fmt: skip
    """x and the gradient are read, dx is written, and two sums of some rows in float32, which are read again; of one
    scale, shift and gate a sample."""
    numbers = batch * rows * channels
    each = rows_of_an_instance(batch, rows, size, 2, device.processors)
    least = 3 * numbers * size + 2 * (2 + gated) * batch * channels * size
    sums = 2 * batch * math.ceil(rows / each) * channels * 4
    return Cost(25 * numbers, least, least + sums * (1 if sums <= device.second_cache else 2))


def linear_combine(numbers: int, inputs: list[int], outputs: list[int], *, noises: int = 0) -> Cost:
    """inputs, outputs: bytes of a number of each that is in memory; noises: inputs that are computed."""
    least = numbers * (sum(inputs) + sum(outputs))
    return Cost(2 * numbers * (len(inputs) + noises) * max(1, len(outputs)) + 40 * noises * numbers, least, least)
