"""Runs the Gluon kernel of attention for Hopper on the CPU: its own Python, with stand-ins for what the device does.

Every part of a program (consumers, producer) is a thread. One runs at a time, and a random number generator says which:
at each operation on a barrier it may be another one. What a GPU does later is done later here: a copy by TMA fills its
buffer with NaN at once, and with what it copies at a random time before its barrier is told; a wgmma reads its factors
when it is waited for, or at a random time before. A protocol that is wrong gives NaN, other numbers, or no end.
"""

from __future__ import annotations

import math
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
from simulated_threads import Barrier, Scheduler
from torch import Tensor


class Memory:
    """Shared memory, or a view of it. Reading is what `.data` is."""

    def __init__(self, data: Tensor, dtype: torch.dtype) -> None:
        self.data, self.dtype = data, dtype

    def index(self, i: int) -> Memory:
        assert 0 <= i < self.data.shape[0]
        return Memory(self.data[i], self.dtype)

    def permute(self, order: tuple[int, int]) -> Memory:
        return Memory(self.data.permute(order), self.dtype)

    def store(self, value: Tensor) -> None:
        assert value.shape == self.data.shape
        self.data.copy_(value)


class Barriers:
    def __init__(self, scheduler: Scheduler, count: int) -> None:
        self.all = [Barrier(scheduler) for _ in range(count)]

    def index(self, i: int) -> Barrier:
        assert i >= 0
        return self.all[i]


class Product:
    """A wgmma that may not be done: no tensor, so that nothing can be computed with it before a wait."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute, self.value = compute, None

    def finish(self) -> Tensor:
        if self.value is None:
            self.value = self._compute()
        return self.value


class Device:
    """The stand-ins, and the kernel's functions bound to them."""

    def __init__(self, files: list[types.ModuleType], seed: int, programs: int) -> None:
        self.scheduler = Scheduler(seed)
        self.programs, self.program = programs, 0
        self._in_flight: dict[int, list[Product]] = {}  # by thread, as they were issued
        self._written: dict[int, list[list[bool]]] = {}
        self.functions = self._bind(files)

    def launch(self, name: str, *arguments: Any, **named: Any) -> None:
        """All programs, one after the other, as they share nothing."""
        for program in range(self.programs):
            self.program = program
            self.functions[name](*arguments, **named)

    def _bind(self, files: list[types.ModuleType]) -> dict[str, Any]:
        bound: dict[str, Any] = {}
        for name, value in [item for file in files for item in vars(file).items()]:
            if hasattr(value, "fn") and isinstance(value.fn, types.FunctionType):
                fn = value.fn
                bound[name] = types.FunctionType(fn.__code__, bound, name, fn.__defaults__)
            elif type(value).__name__ == "constexpr":
                bound[name] = value.value
            else:
                bound[name] = value
        bound |= dict(
            gl=self._language(), mbarrier=self._mbarrier(), load=self._load, store=self._store_box,
            wait_for_stores=self._wait_for_stores, fence_async_shared=lambda: None, warpgroup_mma=self._multiply,
            warpgroup_mma_wait=self._wait,
        )  # fmt: skip
        return bound

    def _language(self) -> types.SimpleNamespace:
        ignored = lambda *a, **k: None  # noqa: E731
        return types.SimpleNamespace(
            constexpr=None, float32=torch.float32, float16=torch.float16, bfloat16=torch.bfloat16, int64=torch.int64,
            NVMMADistributedLayout=ignored, DotOperandLayout=ignored, SliceLayout=ignored, NVMMASharedLayout=ignored,
            cdiv=lambda a, b: -(-a // b), static_range=range, program_id=lambda axis: self.program,
            num_programs=lambda axis: self.programs, arange=lambda a, b, layout: torch.arange(a, b),
            zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
            full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
            where=lambda c, a, b: torch.where(c, a, torch.tensor(b, dtype=a.dtype)), maximum=torch.maximum,
            max=lambda x, axis: x.amax(axis), sum=lambda x, axis: x.sum(axis), exp2=torch.exp2, log2=torch.log2,
            convert_layout=lambda x, layout: x, store=self._store, allocate_shared_memory=self._allocate,
            warp_specialize=self._specialize,
        )  # fmt: skip

    def _allocate(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Any:
        if dtype is torch.int64:
            return Barriers(self.scheduler, shape[0])
        return Memory(torch.full(shape, math.nan, dtype=dtype), dtype)

    def _specialize(self, parts: list[tuple[Any, tuple]], warps: list[int], registers: list[int]) -> None:
        assert len(parts) == len(warps) + 1 == len(registers) + 1
        self.scheduler.run([lambda part=part, given=given: part(*given) for part, given in parts])

    def _store(self, place: tuple[Tensor, Tensor], value: Tensor, mask: Tensor) -> None:
        tensor, index = place
        tensor.view(-1)[index[mask]] = value[mask]

    # ---- barriers and copies -----------------------------------------------------------------------------------------

    def _mbarrier(self) -> types.SimpleNamespace:
        def arrive(barrier: Barrier, count: int) -> None:
            barrier.arrive(count)
            self.scheduler.wait()

        def wait(barrier: Barrier, parity: int) -> None:
            self._finish_some()
            barrier.wait(parity)

        return types.SimpleNamespace(
            MBarrierLayout=lambda: None, init=lambda barrier, count: barrier.init(count), arrive=arrive, wait=wait,
            expect=lambda barrier, size: barrier.arrive(1, size),
        )  # fmt: skip

    def _load(self, box: Box, place: list[int], barrier: Barrier, to: Memory) -> None:
        assert tuple(to.data.shape) == (box.rows, box.columns)
        to.data.fill_(math.nan)

        def copy() -> None:
            to.data.copy_(box.read(place))
            barrier.came(to.data.numel() * to.data.element_size())

        self.scheduler.later(copy)

    def _store_box(self, box: Box, place: list[int], memory: Memory) -> None:
        written: list[bool] = []

        def copy() -> None:
            box.write(place, memory.data)
            written.append(True)

        self._written.setdefault(threading.get_ident(), []).append(written)
        self.scheduler.later(copy)

    def _wait_for_stores(self, pending: int) -> None:
        assert pending == 0
        copies = self._written.pop(threading.get_ident(), [])
        self.scheduler.wait(lambda: all(copies))

    # ---- products ----------------------------------------------------------------------------------------------------

    def _multiply(self, a: Any, b: Memory, sums: Any, use_acc: bool = True, is_async: bool = False) -> Product:
        assert is_async

        def compute() -> Tensor:
            left = a.data if isinstance(a, Memory) else a
            product = left.float() @ b.data.float()
            before = sums.finish() if isinstance(sums, Product) else sums
            return before + product if use_acc else product

        product = Product(compute)
        self._in_flight.setdefault(threading.get_ident(), []).append(product)
        return product

    def _finish_some(self) -> None:
        flight = self._in_flight.get(threading.get_ident(), [])
        while flight and self.scheduler.random.random() < 0.3:
            flight.pop(0).finish()

    def _wait(self, num_outstanding: int, deps: tuple[Any, ...]) -> Any:
        flight = self._in_flight.get(threading.get_ident(), [])
        while len(flight) > num_outstanding:
            flight.pop(0).finish()
        done = [product.finish() if product not in flight else None for product in deps]
        assert all(value is not None for value in done), "a result that is not waited for"
        return done[0] if len(done) == 1 else tuple(done)


class Box:
    """A TMA descriptor: blocks of rows by columns of a (B, H, S, D) tensor. What lies outside is 0, and not written."""

    def __init__(self, tensor: Tensor, rows: int, columns: int) -> None:
        self.tensor, self.rows, self.columns = tensor, rows, columns

    def _part(self, place: list[int]) -> Tensor:
        b, h, row, column = place
        return self.tensor[b, h, row : row + self.rows, column : column + self.columns]

    def read(self, place: list[int]) -> Tensor:
        part, found = self._part(place), torch.zeros(self.rows, self.columns, dtype=self.tensor.dtype)
        found[: part.shape[0], : part.shape[1]] = part
        return found

    def write(self, place: list[int], values: Tensor) -> None:
        part = self._part(place)
        part.copy_(values[: part.shape[0], : part.shape[1]])


class Pointer:
    """The address of a tensor's first number."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.offset = tensor, 0

    def __add__(self, offset: Any) -> Any:
        if isinstance(offset, Tensor):
            return self.tensor, self.offset + offset
        moved = Pointer(self.tensor)
        moved.offset = self.offset + offset
        return moved
