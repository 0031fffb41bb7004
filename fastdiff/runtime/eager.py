"""Whether the calls of a model run as written: neither a captured graph nor a compiled form takes their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
