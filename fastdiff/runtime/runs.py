"""Which sampling run the calls of a model belong to: what is kept from one call to the next is of one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[object | None] = ContextVar("run", default=None)


@contextmanager
def one() -> Iterator[None]:
    """The block, or the decorated function, is one run, of this thread."""
    token = _current.set(object())
    try:
        yield
    finally:
        _current.reset(token)


def current() -> object | None:
    """The run in force, which is itself and equal to no other; None outside of runs."""
    return _current.get()
