"""Whether the calls of a model run as written: neither a captured graph nor a compiled form takes their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.fx import _symbolic_trace

_is_jit_tracing = torch._C._is_tracing
_reason: ContextVar[str | None] = ContextVar("eager", default=None)


@contextmanager
def as_written(reason: str) -> Iterator[None]:
    """Inside the block, in this thread. reason: for messages."""
    token = _reason.set(reason)
    try:
        yield
    finally:
        _reason.reset(token)


def wanted() -> str | None:
    """Why calls must run as they are written, or None."""
    return _reason.get()


def traced() -> bool:
    """Whether somebody records the operations of this call (torch.jit.trace, torch.fx), which Dynamo refuses."""
    return _is_jit_tracing() or _symbolic_trace._is_fx_tracing_flag
