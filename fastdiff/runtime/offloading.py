"""Hooks that move a model's weights whenever it is called: accelerate's offloading, and diffusers' of groups.

Neither package is imported. Their hooks are known by the attributes that hold them and the names of their classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

HOLDERS = ("_hf_hook", "_diffusers_hook")  # attributes of a module: a hook of accelerate's, a registry of diffusers'
# LayerwiseCastingHook, of both, gives the weights another dtype for a call.
_MOVING = frozenset(["AlignDevicesHook", "CpuOffload", "GroupOffloadingHook", "LayerwiseCastingHook"])


def moved(parts: Iterable[nn.Module]) -> str | None:
    """Which hook moves weights of these modules, as a sentence, or None. A graph would read them where they were."""
    for part, hook in _moving(parts):
        return f"{type(hook).__name__}, a hook of {type(part).__name__}, moves weights whenever it is called"
    return None


def computes(parts: Iterable[nn.Module]) -> tuple[torch.device | None, torch.dtype | None]:
    """Where these modules compute, and in what, as hooks that move their weights have it; None where none says."""
    device: Any = None
    dtype: torch.dtype | None = None
    for _, hook in _moving(parts):
        if device is None:
            device = getattr(hook, "execution_device", getattr(getattr(hook, "group", None), "onload_device", None))
        dtype = dtype or getattr(hook, "compute_dtype", None)
    return None if device is None else torch.device(device), dtype


def _moving(parts: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, Any]]:
    """Modules and their hooks that move weights."""
    for part in parts:
        for hook in _hooks(vars(part)):
            # One of accelerate's may move the inputs alone.
            if type(hook).__name__ in _MOVING and getattr(hook, "offload", True):
                yield part, hook


def _hooks(attributes: dict[str, Any]) -> Iterator[Any]:
    if (hook := attributes.get(HOLDERS[0])) is not None:
        yield from getattr(hook, "hooks", (hook,))  # several in one
    if (registry := attributes.get(HOLDERS[1])) is not None:
        yield from getattr(registry, "hooks", {}).values()
