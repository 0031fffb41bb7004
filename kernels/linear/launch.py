"""Launches of the products: which kernel and tile takes a call, prepared once for tensors like these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from fastdiff.runtime.device import properties

from ..launching import ALIGNMENT, Launch
from .few import MOST, few_options, linear_few_kernel
from .forward import linear_kernel
from .tiles import DESCRIBED, GROUP, ODD, Tile, choose, tiles

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton 3.2 and 3.3
    TensorDescriptor = None

MAX_KEPT = 1024  # launches
ROW = 16  # numbers, of which Triton sees that they divide a row


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gate: Tensor | None = None,
    residual: Tensor | None = None, activation: str = "none", glu: bool = False, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """As fastdiff.ops.linear with one weight, for tensors that Triton can reach: float32, bfloat16 or float16. Products
    of float32 are not rounded to TF32. Up to MOST rows have a kernel of their own, not as a gated unit.

    tile: one that is not the kernel's own choice, or None. One with tensor descriptors gives way to the kernel's choice
    where x or the weight are not `aligned`.
    """
    batch, tokens, _ = x.shape
    x, weight, bias = _evenly(x), _dense(weight), None if bias is None else bias.contiguous()
    gate, residual = (None if t is None else _dense(t) for t in (gate, residual))
    columns = weight.shape[0] // (2 if glu else 1)
    out = torch.empty((batch, tokens, columns), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    key = (
        x.shape, x.stride(), weight.shape, weight.stride(), x.dtype, x.device, bias is None, _strides(gate),
        _strides(residual), activation, glu, tile, aligned(x, weight),
    )  # fmt: skip
    launch = _kept.get(key)
    if launch is None:
        launch = _prepared(x, weight, bias, gate, residual, activation, glu, tile)
        while len(_kept) >= MAX_KEPT:
            _kept.pop(next(iter(_kept)), None)
        _kept[key] = launch
    launch(x, weight, *(x if t is None else t for t in (bias, gate, residual)), out)
    return out


_kept: dict[Any, Launch] = {}


def _prepared(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, residual: Tensor | None, activation: str,
    glu: bool, tile: Tile | None,
) -> Launch:  # fmt: skip
    """The launch for tensors like these, which are as the kernels want them."""
    batch, tokens, inputs = x.shape
    rows, columns = batch * tokens, weight.shape[0] // (2 if glu else 1)
    arguments: dict[str, Any] = dict(
        columns=columns, inputs=inputs, tokens=tokens, x_row=_row_stride(x), weight_row=weight.stride(0),
        activation=activation, has_bias=bias is not None, enable_fp_fusion=True,
    )  # fmt: skip
    for name, t in (("gate", gate), ("residual", residual)):
        arguments[f"has_{name}"] = t is not None
        arguments[f"{name}_batch"] = 0 if t is None else t.stride(0)
        arguments[f"{name}_row"] = 0 if t is None or t.shape[1] == 1 else t.stride(1)
    if rows <= MOST and not glu and tile is None:
        count, options = few_options(rows, columns)
        return Launch(linear_few_kernel, (count,), **arguments, **options)
    if tile is None or (tile.described and not describable(x, weight)):
        tile = choice_of(x, weight, glu, gate is not None or residual is not None)
    descriptors: dict[str, Callable[[Tensor], Any]] = {}
    if tile.described:
        descriptors = {
            "x": _describe([rows, inputs], arguments["x_row"], [tile.rows, tile.inputs]),
            "weight": _describe([*weight.shape], arguments["weight_row"], [tile.columns, tile.inputs]),
        }
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),)
    return Launch(
        linear_kernel, grid, **arguments, rows=rows, second=columns * weight.stride(0),
        glu=glu, described=tile.described, even=inputs % tile.inputs == 0, precision="ieee", group=GROUP,
        block_rows=tile.rows, block_columns=tile.columns, block_inputs=tile.inputs, num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    ).with_descriptors(**descriptors)  # fmt: skip


def choice_of(x: Tensor, weight: Tensor, glu: bool, followed: bool = False) -> Tile:
    """The tile that the kernel takes by itself. x: (B, S, K), weight: (N, K), twice N with glu. followed: by a gate or
    residual."""
    if not aligned(x, weight):
        return ODD
    device, rows = properties(x.device), x.shape[0] * x.shape[1]
    columns, inputs = weight.shape[0] // (2 if glu else 1), weight.shape[1]
    return choose(
        device.architecture, x.element_size(), rows, columns, inputs, glu=glu, described=describable(x, weight),
        available=device.multiprocessors, followed=followed,
    )  # fmt: skip


def tiles_of(x: Tensor, weight: Tensor, glu: bool, followed: bool = False) -> list[Tile]:
    """Those that may be the quickest. Arguments as of choice_of."""
    if not aligned(x, weight):
        return [ODD]
    return tiles(properties(x.device).architecture, x.element_size(), glu, describable(x, weight), followed)


def aligned(x: Tensor, weight: Tensor) -> bool:
    """Whether x, evenly spaced, and the weight start at multiples of 16 bytes, and rows at multiples of 16 numbers: of
    these Triton knows, so that loads are wide. It is more than tensor descriptors ask for."""
    numbers = (x.shape[2], _row_stride(x), weight.stride(0))
    pointers = (x.data_ptr(), weight.data_ptr())
    return not any(n % ROW for n in numbers) and not any(pointer % ALIGNMENT for pointer in pointers)


def describable(x: Tensor, weight: Tensor) -> bool:
    """Whether tiles of x and the weight can come by tensor descriptors."""
    if TensorDescriptor is None or properties(x.device).architecture not in DESCRIBED:
        return False
    return aligned(x, weight)


def _describe(shape: list[int], row: int, block: list[int]) -> Callable[[Tensor], Any]:
    return lambda tensor: TensorDescriptor(tensor, shape, [row, 1], block)


def _evenly(x: Tensor) -> Tensor:
    """x, or a copy where not all rows are equally far from each other, or not contiguous."""
    batch, tokens, inputs = x.shape
    even = batch == 1 or tokens == 1 or x.stride(0) == tokens * x.stride(1)
    return x if even and (x.stride(2) == 1 or inputs == 1) and _row_stride(x) > 0 else x.contiguous()


def _row_stride(x: Tensor) -> int:
    """Of (B, S, K) as rows of K."""
    batch, tokens, inputs = x.shape
    return x.stride(1) if tokens > 1 else x.stride(0) if batch > 1 else inputs


def _dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _strides(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.shape[1], tensor.stride())
