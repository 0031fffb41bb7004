"""Attention: softmax(scale q k^T + mask) v. Vaswani et al. 2017, Eq. 1; computed in blocks of keys as in Dao et al.
2022, FlashAttention, Algorithm 1."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.calls import Plan
from fastdiff.ops.op import Op, runs_on_triton
from fastdiff.ops.registration import define, differentiated
from fastdiff.ops.tensors import TYPES, address, check_tensor, dense
from fastdiff.runtime.memory import empty
from fastdiff.runtime.native import core
from fastdiff.runtime.triton import precision

MAX_HEAD_DIM = 512  # that Triton's kernel takes
_NARROW = 256  # with gradients, maps or in float32
_FEW_KEYS = 128
_has_bfloat16_products = torch.cpu._is_amx_tile_supported()


class Arguments(NamedTuple):
    """The signature, once; return_lse: whether a gradient may be wanted."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    scale: float | None = None
    return_maps: bool = False
    return_lse: bool = False

    @property
    def factor(self) -> float:
        """Of the scores."""
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale


class Attention(Op[Arguments]):
    """`attention`. As torch.ops.fastdiff.attention it has three results: what attention gives, the logarithm of the
    softmax's denominators (infinite where it is 0) and the maps; each of the latter empty where it is not wanted."""

    name = "attention"
    results = "(Tensor, Tensor, Tensor)"

    @overload
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        scale: float | None = None,
        return_maps: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        scale: float | None = None,
        return_maps: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        scale: float | None = None,
        return_maps: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """softmax(scale q k^T + mask) v, over the keys; the matrix of all queries by all keys is never in memory.

        q: (B, H, Sq, D). k: (B, H, Sk, D). v: (B, H, Sk, Dv). float32, bfloat16, float16 or float64, all three the
        same. Views with any strides and a contiguous last dimension are read in place: of (B, S, H, D) storage it is
        `.transpose(1, 2)`. mask: broadcastable to (B, H, Sq, Sk); boolean, True where a key takes part, or of q's
        dtype, added to the scores. A query with no key left gives 0. scale: 1 / sqrt(D) if not given. Arithmetic is in
        float32 (float64 for float64).

        Returns (B, H, Sq, Dv), from the kernel a view of (B, Sq, H, Dv) storage, so that `.transpose(1, 2).flatten(2)`
        is free; with return_maps also the softmax itself, (B, H, Sq, Sk). Differentiable. Raises ValueError where
        shapes do not fit, TypeError for mixed dtypes.
        """
        out, _, maps = self.run(Arguments(q, k, v, mask, scale, return_maps))
        return (out, maps) if return_maps else out

    def reference(self, a: Arguments, inplace: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same in plain PyTorch; with the maps or denominators, step by step."""
        q, k, v, mask, scale, return_maps, return_lse = a
        if mask is not None and mask.ndim < 2:
            mask = mask.expand(q.shape[2], k.shape[2])
        if not return_maps and not return_lse:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale), None, None
        scores = a.factor * (q @ k.transpose(-2, -1))
        if mask is not None:
            nothing = torch.full((), -torch.inf, dtype=q.dtype, device=q.device)
            scores = torch.where(mask, scores, nothing) if mask.dtype is torch.bool else scores + mask
        alone = (scores == -torch.inf).all(-1, keepdim=True)
        maps = scores.masked_fill(alone, 0).softmax(-1).masked_fill(alone, 0)
        lse = scores.to(torch.promote_types(q.dtype, torch.float32)).logsumexp(-1) if return_lse else None
        return maps @ v, lse, maps if return_maps else None

    def check(self, a: Arguments) -> None:
        q, k, v, mask = a[:4]
        if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or q.shape[3] == 0:
            raise ValueError(
                f"q, k and v must be (B, H, S, D), got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
            )
        batch, heads, queries, channels = q.shape
        keys = k.shape[2]
        check_tensor("k", k, q, (batch, heads, keys, channels), beside="q")
        check_tensor("v", v, q, (batch, heads, keys, v.shape[3]), beside="q")
        if mask is None:
            return
        whole = (batch, heads, queries, keys)
        if mask.ndim > 4 or not all(m in (1, n) for m, n in zip(reversed(mask.shape), reversed(whole))):
            raise ValueError(f"mask is {tuple(mask.shape)}, which does not broadcast to {whole}")
        if mask.dtype is not torch.bool:
            check_tensor("mask", mask, q, mask.shape, beside="q")
        elif mask.device != q.device:
            raise ValueError(f"mask is on {mask.device}, q on {q.device}")

    def limits(self, a: Arguments) -> str | None:
        return _no_gradient_for("the C++", a.mask)

    def slower(self, a: Arguments) -> str | None:
        if a.q.dtype is torch.bfloat16 and a.k.shape[-2] > _FEW_KEYS and _has_bfloat16_products and core.isa() != "amx":
            return f"torch multiplies bfloat16 matrices in hardware here, which pays with more than {_FEW_KEYS} keys"
        return None

    def kernel(self, a: Arguments) -> tuple[Tensor, Tensor | None, Tensor | None]:
        q, k, v, mask, scale, return_maps, return_lse = a
        batch, heads, queries, channels = q.shape
        keys, value_channels = v.shape[2:]
        q, k, v = dense(q), dense(k), dense(v)
        out = empty((batch, queries, heads, value_channels), dtype=q.dtype).transpose(1, 2)
        lse = torch.empty((batch, heads, queries), dtype=torch.float32, device="cpu") if return_lse else None
        maps = torch.empty((batch, heads, queries, keys), dtype=q.dtype, device="cpu") if return_maps else None
        kind, mask_heads, column = "none", (0, 0, 0, 0), 0
        if mask is not None:
            mask = mask if mask.ndim and mask.stride(-1) in (0, 1) else mask.contiguous()
            mask = mask.expand(batch, heads, queries, keys)
            kind, mask_heads = "boolean" if mask.dtype is torch.bool else "additive", _heads(mask)
            column = mask.stride(3) if keys > 1 else 0
        core.attention(
            TYPES[q.dtype], _heads(q), _heads(k), _heads(v), kind, mask_heads, column, _heads(out),
            address(lse), address(maps),
            (batch, heads, queries, keys, channels, value_channels),
            channels**-0.5 if scale is None else scale, torch.get_num_threads(),
        )  # fmt: skip
        return out, lse, maps

    def fake(self, a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = a[:3]
        batch, heads, queries, _ = q.shape
        out = q.new_empty((batch, queries, heads, v.shape[3])).transpose(1, 2)
        lse = q.new_empty((batch, heads, queries) if a.return_lse else (0,), dtype=torch.float32)
        return out, lse, q.new_empty((batch, heads, queries, k.shape[2]) if a.return_maps else (0,))

    def triton_limits(self, a: Arguments) -> str | None:
        q, v = a.q, a.v
        if q.shape[3] > MAX_HEAD_DIM:
            return f"Triton's kernel takes head dimensions up to {MAX_HEAD_DIM}, not {q.shape[3]}"
        if q.shape[3] > _NARROW and (a.return_maps or a.return_lse or _wants_gradient(a) or q.dtype == torch.float32):
            wider = "wider ones in half types without gradients and maps"
            return f"Triton's kernel takes head dimensions up to {_NARROW}, not {q.shape[3]} ({wider})"
        if v.shape[3] != q.shape[3]:
            return f"Triton's kernel takes values as wide as keys, {q.shape[3]}, not {v.shape[3]}"
        if max(t.shape[2] * t.stride(2) for t in a[:3]) >= 2**31:
            return "Triton's kernel takes heads that span less than 2^31 numbers"
        return _no_gradient_for("Triton's", a.mask)

    def state(self, a: Arguments) -> tuple[str, bool]:
        """The precision of products, and whether a mask can be read in blocks."""
        return precision(), a.mask is None or a.mask.data_ptr() % 16 == 0

    def plan(self, a: Arguments, cut: Any = None) -> Plan:
        """cut: a tile of kernels.attention.tiles, or what another kernel without masks, maps and denominators is cut up
        by (few_keys.FewKeys, hopper.Cut); by shape and device if there is none."""
        from fastdiff.kernels.attention import Forward, Maps

        if hasattr(cut, "prepare"):
            alone = cut.prepare(*a[:3], scale=a.factor, precision=precision())
            return lambda a: (alone(a.q, a.k, a.v), None, None)
        given: dict[str, Any] = dict(mask=a.mask, scale=a.factor, precision=precision())
        forward, maps = Forward(*a[:3], **given, tile=cut), Maps(*a[:2], **given) if a.return_maps else None

        def run(a: Arguments) -> tuple[Tensor, Tensor | None, Tensor | None]:
            q, k, v, mask, _, _, return_lse = a
            out, lse = forward(q, k, v, mask)
            return out, lse if return_lse else None, None if maps is None else maps(q, k, lse, mask)

        return run

    def _compute(self, a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
        """With tensors in all places, as torch's dispatcher wants them."""
        out, lse, maps = super()._compute(a)
        lse = out.new_empty((0,), dtype=torch.float32) if lse is None else lse
        return out, lse, out.new_empty((0,)) if maps is None else maps

    # ---- gradients: torch's own kernel, which computes the maps again from the denominators, block by block ----------

    def recording(self, a: Arguments) -> Arguments:
        """With the denominators, where a gradient is wanted."""
        return Arguments(*a[:6], _wants_gradient(a))

    def save(self, ctx: Any, values: tuple[Any, ...], results: tuple[Tensor, Tensor, Tensor]) -> None:
        q, k, v, mask, *ctx.numbers = values
        out, lse, _ = results
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(q, k, v, mask, out, lse)

    def backward(self, ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        a = Arguments(*tensors, *ctx.numbers)
        again = torch.is_grad_enabled()  # a gradient of the gradient is asked for
        if again or a.return_maps or ctx.needs_input_grad[3] or not a.return_lse:
            # Of torch's own attention there are no second derivatives, of its parts there are.
            maps_too = a._replace(return_maps=a.return_maps or again, return_lse=False)
            wanted = gradients if a.return_maps else (gradients[0], None, None)
            return differentiated(self.reference, maps_too, ctx.needs_input_grad, wanted, again)
        q, k, v, mask = tensors
        compute = _backward_by_triton if runs_on_triton(q) else _backward_by_torch
        found = compute(gradients[0], q, k, v, mask, out, lse, a.factor)
        return *found, None, None, None, None


def _wants_gradient(a: Arguments) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in a[:3])


def _no_gradient_for(whose: str, mask: Tensor | None) -> str | None:
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return f"{whose} kernel has no gradient for the mask"
    return None


def _heads(tensor: Tensor) -> tuple[int, int, int, int]:
    """(address, stride of a batch, of a head, of a row)."""
    batch, head, row, _ = tensor.stride()
    return tensor.data_ptr(), batch, head, row


def _backward_by_torch(
    gradient: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, ...]:
    if mask is not None:
        if mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -torch.inf)
        mask = mask.expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale
    )


def _triton_backward(
    gradient: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, ...]:
    from fastdiff.kernels.attention import attention_backward

    try:
        found = attention_backward(gradient, q, k, v, out, lse, mask=mask, scale=scale, precision=precision())
    except Exception as error:
        attention.gives_way(q, error)
        a, wanted = Arguments(q, k, v, mask, scale), (True,) * 3 + (False,) * 4
        found = differentiated(attention.reference, a, wanted, (gradient, None, None), False)[:3]  # type: ignore[assignment]
    return tuple(t.contiguous() for t in found)


_backward_by_triton = define(
    "attention_backward_triton(Tensor gradient, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor lse, "
    "float scale) -> (Tensor, Tensor, Tensor)",
    _triton_backward,
    lambda gradient, *qkv_and_rest: tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in qkv_and_rest[:3]
    ),
    on_gpu=True,
)

attention = Attention()
