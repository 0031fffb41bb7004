"""Which implementation runs: `fastdiff.use(...)`, the environment variable FASTDIFF_BACKEND, or the best that fits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fastdiff.errors import unknown

# "auto" takes the compiled kernels where they support the input and the reference elsewhere; the others insist.
BACKENDS = ("auto", "reference", "cpu")

_chosen: ContextVar[str | None] = ContextVar("fastdiff_backend", default=None)


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Run everything inside the `with` block on one implementation: a free comparison of two.

    backend: "reference" (plain PyTorch), "cpu" (C++) or "auto". With "cpu", an input that the kernels cannot take is an
    error; with "auto" it goes to the reference. Raises ValueError for other names.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def current() -> str:
    """The backend in force: the innermost `use`, else FASTDIFF_BACKEND, else "auto"."""
    backend = _chosen.get()
    if backend is None:
        backend = os.environ.get("FASTDIFF_BACKEND") or "auto"
        if backend not in BACKENDS:
            raise unknown("backend in FASTDIFF_BACKEND", backend, BACKENDS)
    return backend


def pick(reason: str | None) -> str:
    """ "cpu" or "reference", given why the compiled kernels cannot take the input (None if they can).

    Raises NotImplementedError if "cpu" was insisted on and they cannot.
    """
    backend = current()
    if backend == "cpu" and reason:
        raise NotImplementedError(f"the cpu backend was asked for, but {reason}")
    return "reference" if backend == "reference" or reason else "cpu"
