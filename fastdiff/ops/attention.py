"""Attention: softmax(scale q k^T + mask) v. Vaswani et al. 2017, Eq. 1; computed in blocks of keys as in Dao et al.
2022, FlashAttention, Algorithm 1."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops import on_triton
from fastdiff.ops.registration import TYPES, check_tensor, is_direct, register
from fastdiff.runtime.choice import pick
from fastdiff.runtime.dispatcher import transformed
from fastdiff.runtime.memory import empty
from fastdiff.runtime.native import core


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    return_maps: Literal[False] = False,
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    return_maps: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    return_maps: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T + mask) v, over the keys; the matrix of all queries by all keys is never in memory.

    q: (B, H, Sq, D). k: (B, H, Sk, D). v: (B, H, Sk, Dv). float32, bfloat16, float16 or float64, all three the same.
    Views with any strides and a contiguous last dimension are read in place: of (B, S, H, D) storage it is
    `.transpose(1, 2)`. mask: broadcastable to (B, H, Sq, Sk); boolean, True where a key takes part, or of q's dtype,
    added to the scores. A query with no key left gives 0. scale: 1 / sqrt(D) if not given. Arithmetic is in float32
    (float64 for float64).

    Returns (B, H, Sq, Dv), from the kernel a view of (B, Sq, H, Dv) storage, so that `.transpose(1, 2).flatten(2)` is
    free; with return_maps also the softmax itself, (B, H, Sq, Sk). Differentiable. Raises ValueError where shapes do
    not fit, TypeError for mixed dtypes.
    """
    _check(q, k, v, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    slower = faster_in_torch(q, k, v)
    if slower is None and is_direct(q, (q, k, v, mask)):
        out, _, maps = _kernel(q, k, v, mask, scale, return_maps, False)
        return (out, maps) if return_maps else out
    if (
        pick(supports(q, k, v, mask), slower, triton=lambda: supports_triton(q, k, v, mask), op="attention")
        == "reference"
    ):
        return reference(q, k, v, mask, scale, return_maps)
    differentiable = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    out, _, maps = _call(q, k, v, mask, scale, return_maps, differentiable)
    return (out, maps) if return_maps else out


def reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None, return_maps: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The same in plain PyTorch; with the maps, step by step."""
    if mask is not None and mask.ndim < 2:
        mask = mask.expand(q.shape[2], k.shape[2])
    if not return_maps:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ k.transpose(-2, -1))
    if mask is not None:
        nothing = torch.full((), -torch.inf, dtype=q.dtype)
        scores = torch.where(mask, scores, nothing) if mask.dtype is torch.bool else scores + mask
    alone = (scores == -torch.inf).all(-1, keepdim=True)
    maps = scores.masked_fill(alone, 0).softmax(-1).masked_fill(alone, 0)
    return maps @ v, maps


def supports(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str | None:
    """Why the compiled kernel cannot take this, or None."""
    if (reason := transformed()) is not None:
        return reason
    if q.device.type != "cpu":
        return f"q is on {q.device}, and the C++ kernel runs on the CPU"
    if q.dtype not in TYPES:
        return f"the C++ kernel takes float32, bfloat16 and float16, not {q.dtype}"
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return "the C++ kernel has no gradient for the mask"
    return None


def supports_triton(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str | None:
    """Why the Triton kernel cannot take this, or None."""
    return transformed() or on_triton.attention_unsupported(q, k, v, mask)


def faster_in_torch(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why torch is faster with this, so that it runs unless the kernel is insisted on; or None."""
    if q.dtype is torch.bfloat16 and k.shape[-2] > _FEW_KEYS and _has_bfloat16_products and core.isa() != "amx":
        return f"torch multiplies bfloat16 matrices in hardware here, which pays with more than {_FEW_KEYS} keys"
    return None


_FEW_KEYS = 128
_has_bfloat16_products = torch.cpu._is_amx_tile_supported()


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: object) -> None:
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or q.shape[3] == 0:
        raise ValueError(
            f"q, k and v must be (B, H, S, D), got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    batch, heads, queries, channels = q.shape
    check_tensor("k", k, q, (batch, heads, k.shape[2], channels))
    check_tensor("v", v, q, (batch, heads, k.shape[2], v.shape[3]))
    if mask is None:
        return
    whole = (batch, heads, queries, k.shape[2])
    fits = mask.ndim <= 4 and all(a in (1, b) for a, b in zip(reversed(mask.shape), reversed(whole)))
    if not fits:
        raise ValueError(f"mask is {tuple(mask.shape)}, which does not broadcast to {whole}")
    if mask.dtype is not torch.bool:
        check_tensor("mask", mask, q, mask.shape)
    elif mask.device != q.device:
        raise ValueError(f"mask is on {mask.device}, q on {q.device}")


def _kernel(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, return_maps: bool, return_lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, the logarithm of the softmax's denominators (infinite where it is 0) and the maps; each of the latter
    empty where it is not wanted."""
    if q.dtype not in TYPES:
        raise ValueError(f"the kernel takes float32, bfloat16 and float16, not {q.dtype}")
    batch, heads, queries, channels = q.shape
    keys, value_channels = v.shape[2:]
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    out = empty((batch, queries, heads, value_channels), dtype=q.dtype).transpose(1, 2)
    lse = torch.empty((batch, heads, queries) if return_lse else (0,), dtype=torch.float32)
    maps = torch.empty((batch, heads, queries, keys) if return_maps else (0,), dtype=q.dtype)
    kind, mask_heads, column = "none", (0, 0, 0, 0), 0
    if mask is not None:
        mask = mask if mask.ndim and mask.stride(-1) in (0, 1) else mask.contiguous()
        mask = mask.expand(batch, heads, queries, keys)
        kind, mask_heads = "boolean" if mask.dtype is torch.bool else "additive", _heads(mask)
        column = mask.stride(3) if keys > 1 else 0
    core.attention(
        TYPES[q.dtype],
        _heads(q),
        _heads(k),
        _heads(v),
        kind,
        mask_heads,
        column,
        _heads(out),
        lse.data_ptr() if return_lse else 0,
        maps.data_ptr() if return_maps else 0,
        (batch, heads, queries, keys, channels, value_channels),
        scale,
        torch.get_num_threads(),
    )
    return out, lse, maps


def _heads(tensor: Tensor) -> tuple[int, int, int, int]:
    """(address, stride of a batch, of a head, of a row)."""
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)


def _fake(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, return_maps: bool, return_lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    out = q.new_empty((batch, queries, heads, v.shape[3])).transpose(1, 2)
    lse = q.new_empty((batch, heads, queries) if return_lse else (0,), dtype=torch.float32)
    return out, lse, q.new_empty((batch, heads, queries, k.shape[2]) if return_maps else (0,))


# ---- gradients: torch's own kernel, which computes the maps again from the denominators, block by block -------------


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.scale, ctx.return_maps, ctx.return_lse = inputs
    out, lse, _ = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, mask, out, lse)


def _backward(ctx, gradient: Tensor, _: Tensor | None, maps_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, mask, out, lse = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:4]
    again = torch.is_grad_enabled()  # a gradient of the gradient is asked for
    if again or ctx.return_maps or wanted[3] or not ctx.return_lse:
        found = _through_reference(ctx, (q, k, v, mask), wanted, (gradient, maps_gradient), again)
        return *found, None, None, None
    if on_triton.runs(q):
        return *on_triton.attention_backward(gradient, q, k, v, mask, out, lse, ctx.scale), None, None, None, None
    if mask is not None:
        if mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        mask = mask.expand(*q.shape[:3], k.shape[2])
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=ctx.scale
    )
    return *found, None, None, None, None


def _through_reference(
    ctx, tensors: tuple[Any, ...], wanted: tuple[bool, ...], gradients: tuple, again: bool
) -> list[Tensor | None]:
    with torch.enable_grad():
        q, k, v, mask = (t if t is None or again else t.detach() for t in tensors)
        inputs = [t.requires_grad_() for t, needed in zip((q, k, v, mask), wanted) if needed]
        # Of torch's own attention there are no second derivatives, of its parts there are.
        result = reference(q, k, v, mask, ctx.scale, ctx.return_maps or again)
        results = [result] if isinstance(result, Tensor) else list(result)
        results = results if ctx.return_maps else results[:1]
        found = iter(torch.autograd.grad(results, inputs, gradients[: len(results)], create_graph=again))
    return [next(found) if needed else None for needed in wanted]


_call = register(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, bool return_maps, bool return_lse) "
    "-> (Tensor, Tensor, Tensor)",
    kernel=_kernel,
    check=_check,
    fake=_fake,
    save=_save,
    backward=_backward,
    triton=on_triton.attention,
)
