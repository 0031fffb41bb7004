"""Attention for Hopper, as it is launched: how it is cut up by shape, what it cannot take, TMA descriptors.

The kernel is in hopper_kernel.py, which can be imported where Triton has Gluon.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.runtime.device import properties
from fastdiff.runtime.triton import INTERPRETED

from ..launching import Launch
from .tiles import widths

if TYPE_CHECKING:
    from collections.abc import Callable

OLDEST = (3, 6)  # Triton whose Gluon has the names that the kernel asks for
ROWS = 64  # queries of a consumer: what one wgmma has
REGISTERS = 65536  # of a multiprocessor
ALIGNMENT = 16  # bytes, of TMA's addresses and strides
MAX_DIM = 160  # wider heads were not tried


class Cut(NamedTuple):
    """consumers: groups of four warps with 64 queries each, 1 to 4. block_n: keys of a block; stages: blocks in memory.

    persistent: as many programs as run at once, each with several tiles. turns: two consumers issue products in turns.
    resident: programs that share a multiprocessor, for which registers are left.
    """

    consumers: int
    block_n: int
    stages: int
    persistent: bool = False
    turns: bool = False
    resident: int = 1

    @property
    def said(self) -> str:
        """Consumers x queries x keys / stages, and what else is particular."""
        words = [f"{self.consumers}x{ROWS}x{self.block_n}/{self.stages}"]
        words += [name for name in ("persistent", "turns") if getattr(self, name)]
        return " ".join([*words, *([f"x{self.resident}"] if self.resident > 1 else [])])

    @property
    def registers(self) -> tuple[int, int, int]:
        """Of a thread when the kernel starts, of a consumer's and of the producer's after they have been shared out
        again. setmaxnreg takes multiples of 8 from 24 to 240."""
        groups = self.consumers + 1  # the producer's warp counts for four
        resident = max(2, self.resident) if self.consumers == 1 else self.resident
        start = min(248, REGISTERS // resident // (128 * groups) // 8 * 8)
        consumer = min(240, (start * groups - 24) // self.consumers // 8 * 8)
        return start, consumer, start * groups - consumer * self.consumers

    def prepare(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, precision: str) -> Callable[..., Tensor]:
        """The launch for tensors like these, without the log-sum-exp."""
        forward = HopperForward(q, k, v, scale=scale, cut=self)
        return lambda q, k, v: forward(q, k, v)[0]


# By the largest head dimension, what was the quickest of a draft of the kernel on one H100 in float16 (PyTorch 2.11,
# Triton 3.6, in a CUDA graph; docs/notes/gpu-kernels.md). FEW: where all programs for 64 queries run at once.
FEW: tuple[tuple[int, Cut], ...] = ((96, Cut(1, 128, 2, resident=2)), (160, Cut(1, 128, 2)), (160, Cut(1, 64, 3)))
MANY: tuple[tuple[int, Cut], ...] = (
    (48, Cut(4, 64, 4, persistent=True)),
    (64, Cut(2, 128, 2, persistent=True)),
    (96, Cut(2, 128, 2, turns=True)),
    (128, Cut(2, 128, 2)),
    (160, Cut(2, 64, 3)),
)
WHOLE = (Cut(1, 128, 2), Cut(4, 64, 4, persistent=True))  # they spill registers where keys do not fill their blocks


def cuts(dim: int, queries: int, keys: int, heads: int, multiprocessors: int) -> list[Cut]:
    """The choice for a shape, then the other that is worth timing. heads: batch times heads."""
    few, many = (
        next(cut for most, cut in table if dim <= most and (keys % cut.block_n == 0 or cut not in WHOLE))
        for table in (FEW, MANY)
    )
    return [few, many] if triton.cdiv(queries, ROWS) * heads <= 2 * multiprocessors else [many, few]


@functools.cache
def missing() -> str | None:
    """Why the kernel is not there with this Triton, or None."""
    version = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])
    if version < OLDEST:
        return f"Triton {triton.__version__} has no Gluon as the kernel asks for it ({OLDEST[0]}.{OLDEST[1]} has)"
    if INTERPRETED:
        return "Triton's interpreter cannot run Gluon's kernels for Hopper"
    try:
        from . import hopper_kernel  # noqa: F401
    except (ImportError, AttributeError) as error:
        return f"Triton {triton.__version__} has another Gluon than the kernel asks for ({error})"
    return None


def unfit(q: Tensor, k: Tensor, v: Tensor, scale: float) -> str | None:
    """Why the kernel cannot take such tensors, or None."""
    batch, heads, queries, dim = q.shape
    if q.dtype not in (torch.float16, torch.bfloat16):
        return "the kernel for Hopper takes float16 and bfloat16"
    if dim > MAX_DIM or dim % 8 or v.shape[3] != dim:
        return f"the kernel for Hopper takes head dimensions up to {MAX_DIM} that are multiples of 8, not {dim}"
    if not scale > 0:
        return f"the kernel for Hopper takes a scale above 0, not {scale}"
    if not q.numel() or not k.numel():
        return "the kernel for Hopper takes one query and one key or more"
    if batch * heads * queries >= 2**31 - ROWS * 4:
        return "the kernel for Hopper takes fewer than 2^31 queries in all"
    return None


class HopperForward:
    """The launch for tensors like these: float16 or bfloat16, (B, H, Sq, D) and (B, H, Sk, D), D a multiple of 8 up to
    160, scale > 0. Raises ValueError for others, RuntimeError where Triton has no such Gluon."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, cut: Cut | None = None
    ) -> None:  # fmt: skip
        batch, heads, queries, dim = q.shape
        keys = k.shape[2]
        scale = dim**-0.5 if scale is None else float(scale)
        reason = unfit(q, k, v, scale)
        expect(reason is None, str(reason))
        if (absent := missing()) is not None:
            raise RuntimeError(absent)
        from triton.experimental.gluon import language as gl

        from .hopper_kernel import attention_hopper_kernel

        device = properties(q.device)
        cut = cut or cuts(dim, queries, keys, batch * heads, device.multiprocessors)[0]
        self._dtype, self._device = q.dtype, q.device
        self._shape, self._strides = q.shape, (queries * heads * dim, dim, heads * dim, 1)  # a view of (B, Sq, H, D)
        self._lse = (batch, heads, queries)
        tiles = triton.cdiv(queries, ROWS * cut.consumers) * batch * heads
        programs = min(tiles, device.multiprocessors * cut.resident) if cut.persistent else tiles
        width0, width1 = widths(dim)
        start, consumer, producer = cut.registers
        boxes = {
            f"{name}{part}": functools.partial(describe, rows=rows, columns=width)
            for name, rows in (("q", ROWS), ("k", cut.block_n), ("v", cut.block_n), ("out", ROWS))
            for part, width in enumerate((width0, width1 or width0))
        }
        self._launch = Launch(
            attention_hopper_kernel, (programs,), heads=heads, tiles=tiles, queries=queries, keys=keys, scale=scale,
            dtype=getattr(gl, str(q.dtype).removeprefix("torch.")), width0=width0, width1=width1, rows=ROWS,
            block_n=cut.block_n, stages=cut.stages, consumers=cut.consumers, turns=cut.turns,
            whole_keys=keys % cut.block_n == 0, consumer_registers=consumer, producer_registers=producer,
            num_warps=4, maxnreg=start, enable_fp_fusion=True,
        ).with_descriptors(**boxes)  # fmt: skip

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The output (B, H, Sq, D), a view of (B, Sq, H, D) storage, and the log-sum-exp (B, H, Sq) in float32."""
        out = torch.empty_strided(self._shape, self._strides, dtype=self._dtype, device=self._device)
        lse = torch.empty(self._lse, dtype=torch.float32, device=self._device)
        q, k, v = aligned(q), aligned(k), aligned(v)
        self._launch(q, q, k, k, v, v, out, out, lse)
        return out, lse


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where TMA cannot read it: other addresses and strides than multiples of 16 bytes, rows that
    are not contiguous or all the same."""
    unit = ALIGNMENT // tensor.element_size()
    steps = [step for step, size in zip(tensor.stride()[:3], tensor.shape) if size > 1]
    if tensor.stride(3) == 1 and not tensor.data_ptr() % ALIGNMENT and all(s > 0 and s % unit == 0 for s in steps):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def describe(tensor: Tensor, rows: int, columns: int) -> Any:
    """Of a (B, H, S, D) tensor, read or written in blocks of one head."""
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = gl.NVMMASharedLayout(swizzle_byte_width=min(128, 2 * columns), element_bitwidth=16, rank=4)
    # The stride of an axis of one is of no meaning, but must be a multiple of 16 bytes too.
    steps = [step if size > 1 else tensor.shape[3] for step, size in zip(tensor.stride(), tensor.shape[:3])]
    return TensorDescriptor(tensor, list(tensor.shape), [*steps, 1], [1, 1, rows, columns], layout)


def attention_hopper(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, cut: Cut | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v and the log-sum-exp of the scores. Arguments and errors as of HopperForward."""
    return HopperForward(q, k, v, scale=scale, cut=cut)(q, k, v)
