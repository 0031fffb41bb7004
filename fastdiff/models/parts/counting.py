"""Sizes of models: parameters, and multiply-adds of a call, without values (on the meta device) if wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastdiff.ops  # noqa: F401  (registers the operators)


def parameters(model: nn.Module) -> int:
    """The number of parameters; buffers, such as fixed tables of positions, are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Multiply-adds of the convolutions, linear layers, matrix products and attentions in a call of `function`.

    What papers call flops or MACs, half of the floating-point operations. Element-wise operations, norms and softmax
    are not counted. With a model and tensors on the meta device nothing is computed.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        function(*arguments, **options)
    return counter.get_total_flops() // 2


def _attention_flops(
    q: torch.Size, k: torch.Size, v: torch.Size, *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    """Of q k^T and of the maps' product with v, as torch's counter has it for its GPU kernels."""
    batch, heads, queries, channels = q
    return 2 * batch * heads * queries * k[2] * (channels + v[3])


_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.fastdiff.attention: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
