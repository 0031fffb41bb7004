"""What a consumer of attention for Hopper does (hopper_kernel.py), and which barrier says what.

A consumer has 64 queries and issues the scores of the next block of keys and the product with the values of the current
one before the softmax, so that the matrix units work meanwhile. Its first block is that of the last keys, the only one
that may be filled in part.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# By TMA: the names since Triton 3.7, and in 3.6.
store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
wait_for_stores = tma.store_wait

LOG2_E = gl.constexpr(1.4426950408889634)
LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def stage_of(count, stages: gl.constexpr):
    """The buffer of the block of keys number `count`, of all that a program goes over."""
    return count % stages


@gluon.jit
def phase_of(count, stages: gl.constexpr):
    """The parity of the phase in which a barrier of that buffer says "ready"; "empty" it says in the other one."""
    return (count // stages) & 1


@gluon.jit
def turn_of(count, step, consumer: gl.constexpr):
    """The parity that one of two consumers waits for before it issues products, in turns: the first begins.

    Each waits for every block but the first of a tile: count - step - 1 times before this one.
    """
    return ((count - step - 1) & 1) ^ (1 if consumer == 0 else 0)


@gluon.jit
def place_of(tile, heads, queries, rows: gl.constexpr):
    """Sample, head and first query of a tile of `rows` queries."""
    blocks = gl.cdiv(queries, rows)
    head = tile // blocks
    return head // heads, head % heads, (tile % blocks) * rows


@gluon.jit
def issue_scores(q0, q1, k0, k1, rows: gl.constexpr, block_n: gl.constexpr, width1: gl.constexpr, layout: gl.constexpr):
    """q k^T, issued and not waited for."""
    zero = gl.zeros((rows, block_n), gl.float32, layout)
    s = warpgroup_mma(q0, k0.permute((1, 0)), zero, use_acc=False, is_async=True)
    if width1 > 0:
        s = warpgroup_mma(q1, k1.permute((1, 0)), s, is_async=True)
    return s


@gluon.jit
def softmax(s, top, total, log2_scale):
    """Probabilities before division; the running maximum (in units of log 2) and sum; the factor of what was summed."""
    highest = gl.maximum(top, gl.max(s, axis=1) * log2_scale)
    rescale = gl.exp2(top - highest)
    p = gl.exp2(s * log2_scale - highest[:, None])
    return p, highest, total * rescale + gl.sum(p, axis=1), rescale


@gluon.jit
def consume_tile(
    buffers, barriers, out0, out1, lse, heads, tile, step, queries, keys, log2_scale,
    consumer: gl.constexpr, consumers: gl.constexpr, width0: gl.constexpr, width1: gl.constexpr, rows: gl.constexpr,
    block_n: gl.constexpr, stages: gl.constexpr, turns: gl.constexpr, whole_keys: gl.constexpr,
):  # fmt: skip
    """The output and log-sum-exp of the consumer's rows of a tile, the program's `step`-th."""
    q0s, q1s, k0s, k1s, v0s, v1s = buffers
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, turn = barriers
    b, h, first = place_of(tile, heads, queries, rows * consumers)
    of_s: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, block_n, 16])
    of_0: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, width0, 16])
    other: gl.constexpr = width1 if width1 > 0 else 16
    of_1: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, other, 16])
    left_0: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=of_0, k_width=2)
    left_1: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=of_1, k_width=2)
    in_flight: gl.constexpr = 1 if width1 == 0 else 2  # products with values, issued after the scores
    blocks = gl.cdiv(keys, block_n)
    before = step * blocks  # blocks of keys of earlier tiles
    top = gl.full([rows], -1e30, gl.float32, gl.SliceLayout(1, of_s))
    total = gl.full([rows], 0.0, gl.float32, gl.SliceLayout(1, of_s))
    mbarrier.wait(q_ready.index(consumer), step & 1)
    q0 = q0s.index(consumer)
    q1 = q1s.index(consumer)
    i = stage_of(before, stages)
    mbarrier.wait(k_ready.index(i), phase_of(before, stages))
    s = issue_scores(q0, q1, k0s.index(i), k1s.index(i), rows, block_n, width1, of_s)
    s = warpgroup_mma_wait(num_outstanding=0, deps=(s,))
    mbarrier.arrive(k_empty.index(i), count=1)
    if not whole_keys:
        columns = gl.arange(0, block_n, layout=gl.SliceLayout(0, of_s))[None, :]
        s = gl.where(columns + (blocks - 1) * block_n < keys, s, float("-inf"))
    p, top, total, rescale = softmax(s, top, total, log2_scale)
    p = p.to(q0.dtype)
    sum0 = gl.zeros((rows, width0), gl.float32, of_0)
    sum1 = gl.zeros((rows, other), gl.float32, of_1)
    for t in range(1, blocks):
        count = before + t
        i = stage_of(count, stages)
        j = stage_of(count - 1, stages)
        if turns:
            mbarrier.wait(turn.index(consumer), turn_of(count, step, consumer))
        mbarrier.wait(k_ready.index(i), phase_of(count, stages))
        s = issue_scores(q0, q1, k0s.index(i), k1s.index(i), rows, block_n, width1, of_s)
        mbarrier.wait(v_ready.index(j), phase_of(count - 1, stages))
        sum0 = warpgroup_mma(gl.convert_layout(p, left_0), v0s.index(j), sum0, is_async=True)
        if width1 > 0:
            sum1 = warpgroup_mma(gl.convert_layout(p, left_1), v1s.index(j), sum1, is_async=True)
        if turns:
            mbarrier.arrive(turn.index(1 - consumer), count=1)
        s = warpgroup_mma_wait(num_outstanding=in_flight, deps=(s,))
        mbarrier.arrive(k_empty.index(i), count=1)
        p, top, total, rescale = softmax(s, top, total, log2_scale)
        p = p.to(q0.dtype)
        # Complete long ago: its branch keeps ptxas from moving the wait below to above the softmax.
        mbarrier.wait(q_ready.index(consumer), step & 1)
        if width1 > 0:
            sum0, sum1 = warpgroup_mma_wait(num_outstanding=0, deps=(sum0, sum1))
        else:
            sum0 = warpgroup_mma_wait(num_outstanding=0, deps=(sum0,))
        mbarrier.arrive(v_empty.index(j), count=1)
        sum0 = sum0 * gl.convert_layout(rescale, gl.SliceLayout(1, of_0))[:, None]
        if width1 > 0:
            sum1 = sum1 * gl.convert_layout(rescale, gl.SliceLayout(1, of_1))[:, None]
    last = before + blocks - 1
    j = stage_of(last, stages)
    mbarrier.wait(v_ready.index(j), phase_of(last, stages))
    sum0 = warpgroup_mma(gl.convert_layout(p, left_0), v0s.index(j), sum0, is_async=True)
    sum0 = warpgroup_mma_wait(num_outstanding=0, deps=(sum0,))
    if width1 > 0:
        sum1 = warpgroup_mma(gl.convert_layout(p, left_1), v1s.index(j), sum1, is_async=True)
        sum1 = warpgroup_mma_wait(num_outstanding=0, deps=(sum1,))
    mbarrier.arrive(v_empty.index(j), count=1)
    inverse = 1.0 / total
    row = first + consumer * rows
    # Through the memory of the queries, which nobody needs any more.
    q0.store((sum0 * gl.convert_layout(inverse, gl.SliceLayout(1, of_0))[:, None]).to(q0.dtype))
    if width1 > 0:
        q1.store((sum1 * gl.convert_layout(inverse, gl.SliceLayout(1, of_1))[:, None]).to(q0.dtype))
    fence_async_shared()
    store(out0, [b, h, row, 0], q0)
    if width1 > 0:
        store(out1, [b, h, row, width0], q1)
    m = row + gl.arange(0, rows, layout=gl.SliceLayout(1, of_s))
    gl.store(lse + (b * heads + h) * queries + m, (top + gl.log2(total)) * LN_2, mask=m < queries)
    wait_for_stores(0)
    mbarrier.arrive(q_empty.index(consumer), count=1)


@gluon.jit
def consume(
    read,
    consumer: gl.constexpr, consumers: gl.constexpr, width0: gl.constexpr, width1: gl.constexpr, rows: gl.constexpr,
    block_n: gl.constexpr, stages: gl.constexpr, turns: gl.constexpr, whole_keys: gl.constexpr,
):  # fmt: skip
    """All tiles of the program, its rows of each."""
    buffers, barriers, out0, out1, lse, heads, tiles, queries, keys, log2_scale = read
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        consume_tile(
            buffers, barriers, out0, out1, lse, heads, tile, step, queries, keys, log2_scale, consumer, consumers,
            width0, width1, rows, block_n, stages, turns, whole_keys,
        )  # fmt: skip
        step += 1  # noqa: SIM113
