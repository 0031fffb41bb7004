"""Which sampling run the calls of a model belong to, and which of the run's branches: what is kept from one call to the
next is of one branch of one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[object | None] = ContextVar("run", default=None)
_branch: ContextVar[str] = ContextVar("branch", default="")


@contextmanager
def one() -> Iterator[None]:
    """The block, or the decorated function, is one run, of this thread."""
    token, of_branch = _current.set(object()), _branch.set("")
    try:
        yield
    finally:
        _current.reset(token)
        _branch.reset(of_branch)


def current() -> object | None:
    """The run in force, which is itself and equal to no other; None outside of runs."""
    return _current.get()


@contextmanager
def branch(name: str) -> Iterator[None]:
    """Calls in the block are of another branch of the run: the unconditional output apart from the conditional one."""
    token = _branch.set(name)
    try:
        yield
    finally:
        _branch.reset(token)


def current_branch() -> str:
    """The branch in force; "" where none is named."""
    return _branch.get()
