"""Whether the calls of a model run as written: neither a captured graph nor a compiled form takes their place."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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


@functools.cache
def leave_untraced(owner: Any, *names: str) -> None:
    """Let torch.compile stop at these functions of a class or a module, as `torch.compiler.disable` does.

    To be called before they are first needed, and not on import: it imports Dynamo, which takes more than a second.
    """
    for name in names:
        setattr(owner, name, torch.compiler.disable(getattr(owner, name)))


def wanted() -> str | None:
    """Why calls must run as they are written, or None."""
    return _reason.get()


def traced() -> bool:
    """Whether somebody records the operations of this call (torch.jit.trace, torch.fx), which Dynamo refuses."""
    return _is_jit_tracing() or _symbolic_trace._is_fx_tracing_flag
