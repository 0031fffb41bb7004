"""What a model gives in a wider type than its own: how exact its results are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def wider(parameters: int, device: torch.device) -> torch.dtype | None:
    """float64 where so many parameters fit into half the free memory in it, else float32; None where neither does."""
    free = _free(device)
    for dtype in (torch.float64, torch.float32):
        if dtype.itemsize * parameters < (free // 2 if free is not None else 8 * 100_000_000):
            return dtype
    return None


def _free(device: torch.device) -> int | None:
    """Bytes, None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, AttributeError):
        return None


def whole(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> Any:
    """The original's results with weights, buffers and arguments in the dtype. The model stays as it is."""
    compiled = getattr(model, "_compiled_call_impl", None)

    def wide(x: Any) -> Any:
        return x.to(torch.promote_types(x.dtype, dtype)) if isinstance(x, Tensor) and x.is_floating_point() else x

    state = {name: wide(x) for name, x in (*model.named_parameters(), *model.named_buffers())}
    model._compiled_call_impl = None  # what nn.Module runs in place of forward and hooks
    try:
        return torch.func.functional_call(model, state, pytree.tree_map(wide, args), pytree.tree_map(wide, kwargs))
    finally:
        model._compiled_call_impl = compiled


@contextmanager
def without_tf32(device: torch.device) -> Iterator[str | None]:
    """Products and convolutions in float32 as it is on a GPU, where PyTorch's settings may round it to TF32 (those of
    convolutions do, if nobody asked). Gives a note where that is another setting than before."""
    if device.type != "cuda":
        yield None
        return
    get, put = _tf32()
    before = get()
    put(tuple(False for _ in before))
    try:
        yield "computed without TF32, which PyTorch's settings allow" if any(before) else None
    finally:
        put(before)


def _tf32() -> tuple[Callable[[], tuple[Any, ...]], Callable[[tuple[Any, ...]], None]]:
    """How to read whether products and convolutions may round to TF32, and how to set it."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn

    def get() -> tuple[Any, ...]:
        return products.allow_tf32, convolutions.allow_tf32

    def put(values: tuple[Any, ...]) -> None:
        products.allow_tf32, convolutions.allow_tf32 = values

    return get, put
