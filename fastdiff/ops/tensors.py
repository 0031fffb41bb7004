"""What operators ask of their tensors, and how kernels get them: as addresses and strides."""

from __future__ import annotations

import torch
from torch import Tensor

# What the kernels call the types that they take.
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def check_tensor(name: str, tensor: Tensor, x: Tensor, *shapes: tuple[int, ...], beside: str = "x") -> None:
    """Whether a tensor that goes with x, by the name `beside`, has one of `shapes`, and x's device and dtype.

    Raises ValueError or TypeError that names the tensor, what was given and what was expected.
    """
    if tensor.shape in shapes and tensor.dtype is x.dtype and tensor.is_cpu and x.is_cpu:
        return  # as nearly always, and quickly
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.shape not in shapes:
        wanted = " or ".join(map(str, dict.fromkeys(map(tuple, shapes))))
        raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {wanted} for {beside} of {tuple(x.shape)}")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, {beside} on {x.device}")
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} is {tensor.dtype}, {beside} is {x.dtype}")


def wrong_eps(given: float) -> ValueError:
    """What to raise for the epsilon of a norm that is below 0 or not a number."""
    return ValueError(f"eps must be at least 0, got {given}")


def address(tensor: Tensor | None) -> int:
    """Of a contiguous tensor; 0 where there is none."""
    return 0 if tensor is None else tensor.data_ptr()


def rows(tensor: Tensor | None, held: list[Tensor]) -> tuple[int, int, int]:
    """(address, stride of a batch, stride of a row; 0 where the row is the same for all) of (B, S, C).

    Of a copy, appended to `held` so that it lives until the kernel has run, where rows are not contiguous.
    """
    if tensor is None:
        return 0, 0, 0
    batch, row, step = tensor.stride()
    if step != 1:
        tensor = tensor.contiguous()
        held.append(tensor)
        batch, row, _ = tensor.stride()
    return tensor.data_ptr(), batch, row if tensor.shape[1] > 1 else 0


def dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor, contiguous, if there is one."""
    return None if tensor is None else tensor.contiguous()


def layout(x: Tensor, skip: Tensor | None = None) -> torch.memory_format:
    """The layout that x has, or it and what is beside it, and that the result gets."""
    if skip is not None and layout(skip) is not layout(x):
        return torch.contiguous_format
    if x.is_contiguous():
        return torch.contiguous_format
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def is_channels_last(image: Tensor) -> bool:
    """Whether the channels of a map lie side by side."""
    return image.is_contiguous(memory_format=torch.channels_last)
