"""Every kernel in every type and configuration that a launch may ask for, with the bytes that it moves for one shape.

Made to be compiled ahead of time: `fastdiff kernels`. Each op lists its own, in kernels/<op>/variants.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .compile import Launch
from .costs import Cost

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
USUAL = ("fp32", "fp16", "bf16")  # types that all kernels take


class Entry(NamedTuple):
    """kernel, detail: for the reader; usual: what a call compiles that asks for nothing special. shape: the one that
    `cost` counts for; it is given how many program instances run at once."""

    kernel: str
    dtype: str
    detail: str
    usual: bool
    launch: Launch
    shape: str
    cost: Callable[[int], Cost]


def constant(cost: Cost) -> Callable[[int], Cost]:
    """A cost that does not depend on how many program instances run at once."""
    return lambda _: cost


def entries(op: str, target: str) -> Iterator[Entry]:
    """All of an op's for one of compile.TARGETS."""
    yield from import_module(f"..{op}.variants", __package__).variants(target)


def tensor(dtype: str, *shape: int, **options: Any) -> Tensor:
    """A tensor for compile.launches. dtype: one of TYPES."""
    return torch.empty(shape, dtype=TYPES[dtype], device="meta", **options)
