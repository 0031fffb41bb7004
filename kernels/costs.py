"""What kernels must do and what their schedules do: operations, least bytes, bytes moved through memory.

Bytes are those of device memory. What is read again counts once while all that is read meanwhile fits in the second
cache, and every time where it does not. Nothing here is measured.
"""

from __future__ import annotations

import math
from typing import NamedTuple


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
    batch: int, heads: int, queries: int, keys: int, dim: int, size: int, *, block_m: int, resident: int, device: Device
) -> Cost:  # fmt: skip
    """size: bytes of a number. resident: program instances that run at once; each has block_m queries of a head and
    reads all of its keys and values, and those of a head run one after the other."""
    groups = batch * heads
    tiles = math.ceil(queries / block_m)
    q, kv, lse = groups * queries * dim * size, 2 * groups * keys * dim * size, groups * queries * 4
    least = 2 * q + kv + lse
    return Cost(4 * groups * queries * keys * dim, least, least + kv * again(tiles, groups, kv, resident, device))


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


def group_norm_silu(
    samples: int, channels: int, pixels: int, groups: int, size: int, *, adaptive: bool, resident: int, device: Device
) -> Cost:  # fmt: skip
    """A program instance has a group and reads it twice."""
    numbers = samples * channels * pixels
    vectors = (2 + 2 * samples * adaptive) * channels * size
    at_once = min(resident, samples * groups) * (channels // groups) * pixels * size
    least = 2 * numbers * size + vectors
    return Cost(12 * numbers, least, least + (numbers * size if at_once > device.second_cache else 0))


def group_norm_silu_backward(
    samples: int, channels: int, pixels: int, groups: int, size: int, *, adaptive: bool, resident: int, device: Device
) -> Cost:  # fmt: skip
    """Statistics and sums of the channels, then dx, which needs all of them: x and the gradient are read again."""
    numbers = samples * channels * pixels
    vectors = (4 + 4 * samples * adaptive) * channels * size + 2 * samples * channels * 4
    least = 3 * numbers * size + vectors
    at_once = min(resident, samples * groups) * (channels // groups) * pixels * size
    moved = least + (numbers * size if at_once > device.second_cache else 0)
    return Cost(30 * numbers, least, moved + (2 * numbers * size if 2 * numbers * size > device.second_cache else 0))


def ada_layer_norm(batch: int, rows: int, channels: int, size: int, *, gated: bool) -> Cost:
    """scale and shift, and with a gate that and a residual; a row stays in registers."""
    numbers = batch * rows * channels
    least = (2 + gated) * numbers * size + (2 + gated) * batch * channels * size
    return Cost((11 + 2 * gated) * numbers, least, least)


def ada_layer_norm_backward(
    batch: int, rows: int, channels: int, size: int, *, gated: bool, rows_each: int
) -> Cost:  # fmt: skip
    """x and the gradient are read, dx is written, and sums of `rows_each` rows in float32, which are read again."""
    numbers = batch * rows * channels
    least = 3 * numbers * size + 2 * (2 + gated) * batch * channels * size
    sums = 2 * (2 + gated) * batch * math.ceil(rows / rows_each) * channels * 4
    return Cost(25 * numbers, least, least + sums)


def linear_combine(numbers: int, inputs: list[int], outputs: list[int], *, noises: int = 0) -> Cost:
    """inputs, outputs: bytes of a number of each that is in memory; noises: inputs that are computed."""
    least = numbers * (sum(inputs) + sum(outputs))
    return Cost(2 * numbers * (len(inputs) + noises) * max(1, len(outputs)) + 40 * noises * numbers, least, least)
