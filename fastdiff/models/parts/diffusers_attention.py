"""The attention of diffusers networks as controllers see it: inside a block their processors call `attend`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

# Processors that compute what `Through` computes. Layers with others (an IP-Adapter's, added keys) keep them.
PLAIN = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")

_grid: ContextVar[tuple[int, ...]] = ContextVar("grid", default=())  # (H, W) of the tokens in a Transformer2DModel
_lock = threading.Lock()


class Through:
    """A processor of diffusers' `Attention` that calls `attend`, in the place of `usual` while it has users."""

    def __init__(self, attend: Callable[..., Tensor], usual: Any) -> None:
        self.attend, self.usual, self.users = attend, usual, 0

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        x, size = hidden_states, _grid.get()
        if attn.spatial_norm is not None:
            x = attn.spatial_norm(x, temb)
        if x.ndim == 4:
            size = tuple(x.shape[2:])
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        context, kind = (x, "self") if encoder_hidden_states is None else (encoder_hidden_states, "cross")
        if kind == "cross" and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        q, k, v = (
            to(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for to, tokens in ((attn.to_q, x), (attn.to_k, context), (attn.to_v, context))
        )
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(x))
        if mask is not None:
            mask = mask.unflatten(0, (len(x), attn.heads))
        out = self.attend(q, k, v, layer=attn, kind=kind, size=size, mask=mask, scale=attn.scale)
        for layer in attn.to_out:
            out = layer(out)
        if hidden_states.ndim == 4:
            out = out.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


@contextmanager
def through(model: nn.Module, attend: Callable[..., Tensor]) -> Iterator[None]:
    """Inside the block the diffusers layers in a model call `attend`; nothing is done to a model without any."""
    found = [(type(module).__name__, module) for module in model.modules() if _of_diffusers(module)]
    with ExitStack() as stack:
        for name, module in found:
            if name == "Attention":
                stack.enter_context(_placed(module, attend))
            elif name == "Transformer2DModel":
                stack.callback(module.register_forward_pre_hook(_enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(_leave, always_call=True).remove)
        yield


@contextmanager
def _placed(layer: Any, attend: Callable[..., Tensor]) -> Iterator[None]:
    """Blocks, also of several threads, share the processor; the last one puts the usual one back."""
    with _lock:
        if type(layer.processor).__name__ in PLAIN:
            layer.processor = Through(attend, layer.processor)
        placed = layer.processor
        if isinstance(placed, Through):
            placed.users += 1
    try:
        yield
    finally:
        with _lock:
            if isinstance(placed, Through):
                placed.users -= 1
                if placed.users == 0 and layer.processor is placed:
                    layer.processor = placed.usual


def _of_diffusers(module: nn.Module) -> bool:
    return type(module).__module__.startswith("diffusers.")


def _enter(module: nn.Module, given: Sequence[Any], named: dict[str, Any]) -> None:
    x = given[0] if given else named["hidden_states"]
    _grid.set(tuple(x.shape[2:]) if x.ndim == 4 else ())


def _leave(module: nn.Module, given: Any, out: Any) -> None:
    _grid.set(())
