"""attention for Hopper (sm_90) in Gluon: one warp copies by TMA, 1 to 4 groups of four warps compute.

After Shah et al. 2024, FlashAttention-3, Algorithms 1 and 2. Barriers (mbarrier) say what is filled ("ready") and what
may be filled again ("empty"). tests/hopper_simulation.py runs this file and hopper_consumer.py on the CPU.

It can be imported where Triton has Gluon with these names.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .hopper_consumer import LOG2_E, consume, phase_of, place_of, stage_of

load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared  # the latter in Triton 3.6
SIZES = ["heads", "tiles", "queries", "keys"]  # not specialized: a kernel compiled for one resolution serves all


@gluon.jit
def load_block(
    from0, from1, ready, empty, to0, to1, b, h, row, count,
    width0: gl.constexpr, width1: gl.constexpr, block_n: gl.constexpr, stages: gl.constexpr,
):  # fmt: skip
    """Start to copy the block of keys, or of values, number `count`, when its buffer is empty."""
    i = stage_of(count, stages)
    mbarrier.wait(empty.index(i), phase_of(count, stages) ^ 1)
    mbarrier.expect(ready.index(i), block_n * (width0 + width1) * 2)
    load(from0, [b, h, row, 0], ready.index(i), to0.index(i))
    if width1 > 0:
        load(from1, [b, h, row, width0], ready.index(i), to1.index(i))


@gluon.jit
def produce(
    copied,
    consumers: gl.constexpr, width0: gl.constexpr, width1: gl.constexpr, rows: gl.constexpr, block_n: gl.constexpr,
    stages: gl.constexpr,
):  # fmt: skip
    """Copy what the consumers read, in the order in which they do."""
    inputs, buffers, barriers, heads, tiles, queries, keys = copied
    from_q0, from_k0, from_v0, from_q1, from_k1, from_v1 = inputs
    q0s, q1s, k0s, k1s, v0s, v1s = buffers
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, _ = barriers
    blocks = gl.cdiv(keys, block_n)
    end = (blocks - 1) * block_n
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        b, h, first = place_of(tile, heads, queries, rows * consumers)
        count = step * blocks
        load_block(
            from_k0, from_k1, k_ready, k_empty, k0s, k1s, b, h, end, count, width0, width1, block_n, stages
        )  # fmt: skip
        for w in gl.static_range(consumers):
            mbarrier.wait(q_empty.index(w), (step & 1) ^ 1)
            mbarrier.expect(q_ready.index(w), rows * (width0 + width1) * 2)
            row = first + w * rows
            load(from_q0, [b, h, row, 0], q_ready.index(w), q0s.index(w))
            if width1 > 0:
                load(from_q1, [b, h, row, width0], q_ready.index(w), q1s.index(w))
        load_block(
            from_v0, from_v1, v_ready, v_empty, v0s, v1s, b, h, end, count, width0, width1, block_n, stages
        )  # fmt: skip
        for t in range(1, blocks):
            load_block(
                from_k0, from_k1, k_ready, k_empty, k0s, k1s, b, h, (t - 1) * block_n, count + t,
                width0, width1, block_n, stages,
            )  # fmt: skip
            load_block(
                from_v0, from_v1, v_ready, v_empty, v0s, v1s, b, h, (t - 1) * block_n, count + t,
                width0, width1, block_n, stages,
            )  # fmt: skip
        step += 1  # noqa: SIM113


@gluon.jit(do_not_specialize=SIZES)
def attention_hopper_kernel(
    q0, q1, k0, k1, v0, v1, out0, out1, lse,
    heads, tiles, queries, keys, scale,
    dtype: gl.constexpr, width0: gl.constexpr, width1: gl.constexpr, rows: gl.constexpr, block_n: gl.constexpr,
    stages: gl.constexpr, consumers: gl.constexpr, turns: gl.constexpr, whole_keys: gl.constexpr,
    consumer_registers: gl.constexpr, producer_registers: gl.constexpr,
):  # fmt: skip
    """out = softmax(scale q k^T) v and its log-sum-exp (base e), in float16 or bfloat16; scale > 0.

    q0 to out1: TMA descriptors of (B, H, S, D) in blocks of rows by width0 columns, or by the width1 columns behind
    them; where width1 is 0, the second is not read. tiles: of rows * consumers queries, of all heads. turns: two
    consumers issue their products in turns. whole_keys: keys is a multiple of block_n.
    """
    swizzled_0: gl.constexpr = gl.NVMMASharedLayout(
        swizzle_byte_width=min(128, width0 * 2), element_bitwidth=16, rank=2
    )
    q0s = gl.allocate_shared_memory(dtype, [consumers, rows, width0], swizzled_0)
    k0s = gl.allocate_shared_memory(dtype, [stages, block_n, width0], swizzled_0)
    v0s = gl.allocate_shared_memory(dtype, [stages, block_n, width0], swizzled_0)
    if width1 > 0:
        swizzled_1: gl.constexpr = gl.NVMMASharedLayout(
            swizzle_byte_width=min(128, width1 * 2), element_bitwidth=16, rank=2
        )
        q1s = gl.allocate_shared_memory(dtype, [consumers, rows, width1], swizzled_1)
        k1s = gl.allocate_shared_memory(dtype, [stages, block_n, width1], swizzled_1)
        v1s = gl.allocate_shared_memory(dtype, [stages, block_n, width1], swizzled_1)
    else:
        q1s = q0s
        k1s = k0s
        v1s = v0s
    q_ready = gl.allocate_shared_memory(gl.int64, [consumers, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [consumers, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(consumers):
        mbarrier.init(q_ready.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(turn.index(i), count=1)
    for i in gl.static_range(stages):
        mbarrier.init(k_ready.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=consumers)
        mbarrier.init(v_ready.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=consumers)
    buffers = (q0s, q1s, k0s, k1s, v0s, v1s)
    barriers = (q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, turn)
    log2_scale = scale * LOG2_E
    copied = ((q0, k0, v0, q1, k1, v1), buffers, barriers, heads, tiles, queries, keys)
    read = (buffers, barriers, out0, out1, lse, heads, tiles, queries, keys, log2_scale)
    # The first consumer is the part that warp_specialize calls the default one. Constants are written out: a variable
    # would make tensors of them.
    if consumers == 1:
        gl.warp_specialize(
            [
                (consume, (read, 0, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (produce, (copied, consumers, width0, width1, rows, block_n, stages)),
            ],
            [1], [producer_registers],
        )  # fmt: skip
    elif consumers == 2:
        gl.warp_specialize(
            [
                (consume, (read, 0, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (consume, (read, 1, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (produce, (copied, consumers, width0, width1, rows, block_n, stages)),
            ],
            [4, 1], [consumer_registers, producer_registers],
        )  # fmt: skip
    elif consumers == 3:
        gl.warp_specialize(
            [
                (consume, (read, 0, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (consume, (read, 1, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (consume, (read, 2, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (produce, (copied, consumers, width0, width1, rows, block_n, stages)),
            ],
            [4, 4, 1], [consumer_registers, consumer_registers, producer_registers],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (consume, (read, 0, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (consume, (read, 1, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (consume, (read, 2, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (consume, (read, 3, consumers, width0, width1, rows, block_n, stages, turns, whole_keys)),
                (produce, (copied, consumers, width0, width1, rows, block_n, stages)),
            ],
            [4, 4, 4, 1], [consumer_registers, consumer_registers, consumer_registers, producer_registers],
        )  # fmt: skip
