"""Which implementation runs: `fastdiff.use(...)`, the environment variable FASTDIFF_BACKEND, or the best that fits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fastdiff.errors import unknown

# "auto" takes the compiled kernels where they support the input and the reference elsewhere; the others insist.
BACKENDS = ("auto", "reference", "cpu")

# A plain global and not a context variable: torch.compile guards on the former and cannot trace the latter.
_chosen = os.environ.get("FASTDIFF_BACKEND") or "auto"


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Run everything inside the `with` block on one implementation: a free comparison of two. For the whole process.

    backend: "reference" (plain PyTorch), "cpu" (C++) or "auto". With "cpu", an input that the kernels cannot take is an
    error; with "auto" it goes to the reference. Raises ValueError for other names.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    global _chosen  # noqa: PLW0603
    before, _chosen = _chosen, backend
    try:
        yield
    finally:
        _chosen = before


def current() -> str:
    """The backend in force: the innermost `use`, else FASTDIFF_BACKEND when fastdiff was imported, else "auto"."""
    if _chosen not in BACKENDS:
        raise unknown("backend in FASTDIFF_BACKEND", _chosen, BACKENDS)
    return _chosen


def pick(reason: str | None, slower: str | None = None) -> str:
    """ "cpu" or "reference", given why the compiled kernels cannot take the input (None if they can), and why they are
    slower with it than the reference (None if they are not): then they run if they are insisted on.

    Raises NotImplementedError if "cpu" was insisted on and they cannot.
    """
    backend = current()
    if backend == "cpu":
        if reason:
            raise NotImplementedError(f"the cpu backend was asked for, but {reason}")
        return "cpu"
    return "reference" if backend == "reference" or reason or slower else "cpu"
