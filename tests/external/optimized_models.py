"""A plugin of pytest for diffusers' own tests: each model runs optimized, and each call is compared with the original.

Loaded by tests/external/run.sh. A call that wants gradients, or of a model in training, runs as it was written.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import fastdiff

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the largest number, and at least of 1; else 3e-2
_state = threading.local()


def _called(self: Any, *args: Any, **kwargs: Any) -> Any:
    """What `model(...)` is while the plugin is loaded."""
    inner = torch.compiler.is_compiling() or getattr(_state, "busy", False)
    if inner or self.training or torch.is_grad_enabled():
        return self._call_impl(*args, **kwargs) if inner else torch.nn.Module.__call__(self, *args, **kwargs)
    _state.busy = True
    try:
        if self._compiled_call_impl is None:
            fastdiff.optimize(self)
        random = torch.get_rng_state()
        original = self._call_impl(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        torch.set_rng_state(random)
        fast = torch.nn.Module.__call__(self, *args, **kwargs)
    finally:
        _state.busy = False
    _compare(fast, original, type(self).__name__)
    return fast


def _compare(fast: Any, original: Any, name: str) -> None:
    ours, theirs = (pytree.tree_leaves(dict(x) if isinstance(x, dict) else x) for x in (fast, original))
    assert len(ours) == len(theirs), f"{name}: {len(ours)} results, not {len(theirs)}"
    for mine, other in zip(ours, theirs, strict=True):
        assert type(mine) is type(other), f"{name}: {type(mine)}, not {type(other)}"
        if not isinstance(other, Tensor):
            continue
        assert (mine.shape, mine.dtype, mine.stride()) == (other.shape, other.dtype, other.stride()), name
        if other.numel():
            largest = max(1.0, float(other.double().abs().max()))
            error = float((mine.double() - other.double()).abs().max()) / largest
            assert error <= _TOLERANCE.get(other.dtype, 3e-2), f"{name}: {error:.2e} off"


@pytest.fixture(autouse=True)
def _fresh_captures() -> None:
    torch._dynamo.reset()


def pytest_configure() -> None:
    import diffusers

    diffusers.ModelMixin.__call__ = _called
