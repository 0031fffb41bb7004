"""1x1 convolutions: linear layers of pixels, which linear's kernel takes where the pixels' channels are contiguous."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from fastdiff.runtime import choice

linear: Any = importlib.import_module("fastdiff.ops.linear")  # the package has the function by this name

_FEW_PRODUCTS = 1e8  # of two numbers: with fewer torch is as fast, and its calls are shorter


def pointwise(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    residual: Tensor | None,
    channel_bias: Tensor | None,
    activation: str | None,
    upsample: int,
    scale: float,
) -> Tensor | None:
    """conv2d of these arguments, which were checked, by linear's kernel; None where that cannot take them or is slower
    than torch.

    x and residual: channels-last. Returns (N, K, H, W) in channels-last strides.
    """
    if weight.shape[2:] != (1, 1) or stride != 1 or padding != 0 or upsample != 1 or scale != 1:
        return None
    if skip is not None or channel_bias is not None or (activation is not None and residual is not None):
        return None  # linear activates before it adds the residual
    if not _channels_last(x) or (residual is not None and not _channels_last(residual)):
        return None
    batch, _, height, width = x.shape
    backend = choice.current()
    if backend == "auto" and batch * height * width * weight.numel() < _FEW_PRODUCTS:
        return None
    rows, matrix = _pixels(x), weight.flatten(1)
    added = None if residual is None else _pixels(residual)
    if backend not in ("auto", "cpu") or linear.supports(rows, matrix) is not None:
        return None
    if backend == "auto" and linear.faster_in_torch(rows, matrix, bias, None, added) is not None:
        return None
    y = linear.linear(rows, matrix, bias, activation=activation or "none", residual=added)
    return y.view(batch, height, width, weight.shape[0]).permute(0, 3, 1, 2)


def _channels_last(image: Tensor) -> bool:
    return image.is_contiguous(memory_format=torch.channels_last)


def _pixels(image: Tensor) -> Tensor:
    """(N, H W, C), a view."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)
