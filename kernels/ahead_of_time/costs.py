"""What kernels must do and what their schedules do: operations, least bytes, bytes moved through memory.

Bytes are those of device memory. What is read again counts once while all that is read meanwhile fits in L2, and every
time where it does not. Nothing here is measured.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fastdiff.runtime.device import Device

from ..ada_layer_norm.backward import rows_of_an_instance
from ..attention.tiles import samples_at_once
from ..group_norm_silu.plan import plan
from ..group_norm_silu.rows_plan import rows_plan


class Cost(NamedTuple):
    """flops: multiplications and additions; least: bytes of all inputs and outputs once; moved: by the schedule."""

    flops: int
    least: int
    moved: int


class Attention(NamedTuple):
    """size: bytes of a number."""

    batch: int
    heads: int
    queries: int
    keys: int
    dim: int
    size: int

    @property
    def q(self) -> int:
        """Bytes of all queries."""
        return self.batch * self.heads * self.queries * self.dim * self.size

    @property
    def kv(self) -> int:
        """Bytes of all keys and values."""
        return 2 * self.batch * self.heads * self.keys * self.dim * self.size

    @property
    def row(self) -> int:
        """Bytes of one float32 per query."""
        return self.batch * self.heads * self.queries * 4

    @property
    def product(self) -> int:
        """Operations of one product of matrices."""
        return 2 * self.batch * self.heads * self.queries * self.keys * self.dim

    def again(self, tiles: int, shared: int, resident: int, device: Device) -> int:
        """Bytes that come from memory again, after the first time, of what the tiles of a head share. shared: bytes of
        all heads."""
        groups = self.batch * self.heads
        at_once = min(groups, math.ceil(resident / tiles) + 1)
        if shared // groups * at_once <= device.l2_bytes:
            return 0
        return shared * max(0, math.ceil(tiles / resident) - 1)


def attention_forward(a: Attention, *, block_m: int, resident: int, device: Device, splits: int = 1) -> Cost:
    """resident: program instances that run at once; each has block_m queries of a head and reads all of its keys and
    values, and those of a head run one after the other. splits: of the keys, whose results in float32 are combined."""
    least = 2 * a.q + a.kv + a.row
    moved = least + a.again(math.ceil(a.queries / block_m), a.kv, resident, device)
    moved += splits * (a.q // a.size * 4 + a.row) if splits > 1 else 0
    return Cost(2 * a.product, least, moved)


def attention_backward_dq(a: Attention, *, block_m: int, resident: int, device: Device) -> Cost:
    """q, k, v, the gradient, the log-sum-exp and delta are read, dq is written."""
    least = 3 * a.q + a.kv + 2 * a.row
    return Cost(3 * a.product, least, least + a.again(math.ceil(a.queries / block_m), a.kv, resident, device))


def attention_backward_dkv(a: Attention, *, block_n: int, resident: int, device: Device) -> Cost:
    """The same are read, dk and dv are written; program instances have block_n keys and read all queries."""
    least, shared = 2 * a.q + 2 * a.kv + 2 * a.row, 2 * a.q + 2 * a.row
    return Cost(4 * a.product, least, least + a.again(math.ceil(a.keys / block_n), shared, resident, device))


def attention_delta(a: Attention) -> Cost:
    """Sums of out times its gradient over the head dimension."""
    least = 2 * a.q + a.row
    return Cost(2 * a.q // a.size, least, least)


def attention_combine(a: Attention, *, splits: int) -> Cost:
    """The results of splits in float32 are read, and their log-sum-exps; one of each is written."""
    least = splits * (a.q // a.size * 4 + a.row) + a.q + a.row
    return Cost(2 * splits * a.q // a.size, least, least)


def attention_maps(a: Attention) -> Cost:
    """q, k and the log-sum-exp are read, the probabilities are written."""
    least = a.q + a.kv // 2 + a.row + a.row // 4 * a.keys * a.size
    return Cost(a.product, least, least)


def attention_backward(
    a: Attention, *, block_m: int, block_n: int, resident: int, device: Device, splits: int = 1
) -> Cost:  # fmt: skip
    """All three kernels, for as many samples at a time as kernels/attention/backward.py takes. splits: of the queries,
    whose dk and dv in float32 are added."""
    batch = a.batch
    a = a._replace(batch=samples_at_once(*a, device.l2_bytes))
    parts = [
        attention_delta(a),
        attention_backward_dq(a, block_m=block_m, resident=resident, device=device),
        attention_backward_dkv(a, block_n=block_n, resident=resident, device=device),
    ]
    least = 4 * a.q + 2 * a.kv + a.row  # q, out, its gradient, dq; k, v, dk, dv
    if 3 * a.q + a.kv <= device.l2_bytes:
        moved = least + a.row + sum(part.moved - part.least for part in parts)  # delta leaves the cache once
    else:
        moved = sum(part.moved for part in parts)
    moved += splits * a.kv // a.size * 4 if splits > 1 else 0
    flops = sum(part.flops for part in parts)
    return Cost(*(value * batch // a.batch for value in (flops, least, moved)))


def group_norm_silu(
    samples: int, channels: int, pixels: int, groups: int, size: int, *, adaptive: bool, device: Device,
    channels_last: bool = False,
) -> Cost:  # fmt: skip
    """What does not stay in registers is read twice, the second time from L2 where it fits."""
    numbers, width = samples * channels * pixels, channels // groups
    least = 2 * numbers * size + (2 + 2 * samples * adaptive) * channels * size
    moved = least
    rows = rows_plan(samples, groups, width, pixels, device=device) if channels_last else None
    cut = plan(samples, groups, width, pixels, size, channels_last=channels_last, device=device)
    if rows is not None:
        if not rows.whole:
            moved += samples * groups * rows.parts * 8 + (numbers * size if numbers * size > device.l2_bytes else 0)
    elif not cut.whole:
        moved += samples * groups * cut.parts * 8
        at_once = cut.pairs * width * pixels * size
        moved += numbers * size if at_once > device.l2_bytes else 0
    return Cost(12 * numbers, least, moved)


def group_norm_silu_backward(
    samples: int, channels: int, pixels: int, groups: int, size: int, *, adaptive: bool, device: Device,
    channels_last: bool = False,
) -> Cost:  # fmt: skip
    """Statistics, sums of the channels, and dx: x is read three times, the gradient twice."""
    numbers = samples * channels * pixels
    cut = plan(
        samples, groups, channels // groups, pixels, size, channels_last=channels_last, device=device, tensors=2,
        whole=False,
    )  # fmt: skip
    least = 3 * numbers * size + (4 + 4 * samples * adaptive) * channels * size
    moved = least + samples * (groups + channels) * cut.parts * 8
    at_once = 2 * cut.pairs * (channels // groups) * pixels * size
    return Cost(30 * numbers, least, moved + (3 * numbers * size if at_once > device.l2_bytes else 0))


def ada_layer_norm(batch: int, rows: int, channels: int, size: int) -> Cost:
    """Of one scale and shift per sample; a row stays in registers."""
    numbers = batch * rows * channels
    least = 2 * (numbers + batch * channels) * size
    return Cost(11 * numbers, least, least)


def ada_layer_norm_backward(batch: int, rows: int, channels: int, size: int, *, device: Device) -> Cost:
    """x and the gradient are read, dx is written, and two sums of some rows in float32, which are read again."""
    least = 3 * batch * rows * channels * size + 4 * batch * channels * size
    return _with_sums(25, batch, rows, channels, size, least, tensors=3, sums=2, device=device)


def residual_ada_layer_norm(
    batch: int, rows: int, channels: int, size: int, *, gate: bool = True, rows_each: bool = False
) -> Cost:  # fmt: skip
    """y and the residual are read, h and z are written. gate: with gate, scale and shift, which without rows_each are
    one per sample."""
    numbers, row = batch * rows * channels, batch * channels * (rows if rows_each else 1)
    least = (4 * numbers + 3 * gate * row) * size
    return Cost(13 * numbers, least, least)


def residual_ada_layer_norm_backward(
    batch: int, rows: int, channels: int, size: int, *, gate: bool = True, rows_each: bool = False, device: Device
) -> Cost:  # fmt: skip
    """h and both gradients are read, those of y and the residual written; with a gate, y is read and dgate written."""
    numbers, row = batch * rows * channels, batch * channels * (rows if rows_each else 1)
    tensors = 5 + gate
    least = (tensors * numbers + 5 * gate * row) * size  # shift is not read
    sums = 2 if rows_each else 2 + gate
    return _with_sums(28, batch, rows, channels, size, least, tensors=tensors, sums=sums, device=device)


def _with_sums(
    flops: int, batch: int, rows: int, channels: int, size: int, least: int, *, tensors: int, sums: int, device: Device
) -> Cost:  # fmt: skip
    """flops: per number; sums: rows in float32 that leave each program instance, and are read again."""
    each = rows_of_an_instance(batch, rows, size, sums, device.multiprocessors, tensors)
    written = sums * batch * math.ceil(rows / each) * channels * 4
    return Cost(
        flops * batch * rows * channels, least, least + written * (1 if written <= device.l2_bytes else 2)
    )  # fmt: skip


def linear_combine(numbers: int, inputs: list[int], outputs: list[int], *, noises: int = 0) -> Cost:
    """inputs, outputs: bytes of a number of each that is in memory; noises: inputs that are computed."""
    least = numbers * (sum(inputs) + sum(outputs))
    return Cost(2 * numbers * (len(inputs) + noises) * max(1, len(outputs)) + 40 * noises * numbers, least, least)
