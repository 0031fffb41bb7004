"""Which implementation runs: `fastdiff.use(...)`, the environment variable FASTDIFF_BACKEND, or the best that fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch import Tensor
from torch.compiler import is_compiling

from fastdiff.errors import one_of, unknown
from fastdiff.runtime import environment
from fastdiff.runtime import triton as triton_kernels

# "auto" takes the compiled kernels where they support the input and the reference elsewhere; the others insist.
BACKENDS = environment.BACKENDS
MAX_NOTES = 100

# A plain global and not a context variable: torch.compile guards on the former and cannot trace the latter.
_chosen = os.environ.get("FASTDIFF_BACKEND") or "auto"
# None: FASTDIFF_EXACT holds what it may not, which is an error where it is asked for.
_exact: bool | None = None
with suppress(ValueError):
    _exact = environment.read("FASTDIFF_EXACT", False)
_notes: dict[tuple[str, str], int] = {}


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Run everything inside the `with` block on one implementation: a free comparison of two. For the whole process.

    backend: "reference" (plain PyTorch), "cpu" (C++), "triton" (Triton, on a GPU; with TRITON_INTERPRET=1 in Triton's
    interpreter, on the CPU) or "auto". With "cpu" and "triton", an input that the kernels cannot take is an error; with
    "auto" it goes to the reference. So do, with "triton", operators that have no Triton kernel. Raises ValueError for
    other names, NotImplementedError for "triton" where no Triton kernel can run.
    """
    one_of("backend", backend, BACKENDS)
    if backend == "triton" and (reason := triton_kernels.unavailable()):
        raise NotImplementedError(f"the triton backend was asked for, but {reason}")
    global _chosen  # noqa: PLW0603
    before, _chosen = _chosen, backend
    try:
        yield
    finally:
        _chosen = before


def current() -> str:
    """The backend in force: the innermost `use`, else FASTDIFF_BACKEND when fastdiff was imported, else "auto"."""
    if _chosen not in BACKENDS:
        environment.read("FASTDIFF_BACKEND")
        raise unknown("backend in FASTDIFF_BACKEND", _chosen, BACKENDS)
    return _chosen


def exact() -> bool:
    """Whether FASTDIFF_EXACT was 1 when fastdiff was imported: products keep float32's whole range, and each result the
    accuracy of its own size. No products in bfloat16 terms, no transforms."""
    if _exact is None:
        environment.read("FASTDIFF_EXACT")
    return bool(_exact)


def pick(
    reason: str | None, slower: str | None = None, *, triton: Callable[[], str | None] | None = None, op: str = ""
) -> str:
    """ "cpu", "triton" or "reference", given why the compiled kernels cannot take the input (None if they can), and why
    they are slower with it than the reference (None if they are not): then they run if they are insisted on.

    triton: says why Triton's kernels cannot take the input, None if they can. op: who asks; where the reference runs,
    the reason is kept for fastdiff.explain. Raises NotImplementedError if what was insisted on cannot take the input.
    """
    picked, why = weigh(reason, slower, triton=triton)
    if op and why is not None:
        note(op, why)
    return picked


def weigh(
    reason: str | None, slower: str | None = None, *, triton: Callable[[], str | None] | None = None
) -> tuple[str, str | None]:
    """What `pick` picks, and why it is the reference where that was not asked for. Arguments as those of `pick`."""
    backend = current()
    if backend == "reference":
        return "reference", None
    if backend == "cpu" and reason:
        raise NotImplementedError(f"the cpu backend was asked for, but {reason}")
    if backend == "cpu" or (backend == "auto" and not reason and not slower):
        return "cpu", None
    why: str | None = slower
    if reason or backend == "triton":
        why = "there is no Triton kernel for this" if triton is None else triton()
        if backend == "triton" and why and triton is not None:
            raise NotImplementedError(f"the triton backend was asked for, but {triton_kernels.unavailable() or why}")
        if not why:
            return "triton", None
        why = f"{reason}; {why}" if reason else why
    return "reference", str(why)


def out_of_reach(name: str, tensor: Tensor) -> str | None:
    """Why Triton's kernels cannot run on a tensor where it is, or None. name: of the tensor, for the message."""
    if triton_kernels.MISSING is not None:
        return triton_kernels.MISSING
    if tensor.is_cuda:
        return triton_kernels.too_old(tensor.device)
    if triton_kernels.INTERPRETED and tensor.is_cpu and current() == "triton":
        return None
    return f"{name} is on {tensor.device}, and Triton's kernels run on GPUs"


def notes() -> dict[tuple[str, str], int]:
    """How often the reference ran because no kernel could take the input or it is faster, by operation and reason; the
    first MAX_NOTES of them. Calls inside torch.compile are not among them."""
    return dict(_notes)


def note(op: str, reason: str) -> None:
    """Keep for `notes` that the reference ran."""
    if is_compiling():
        return
    count = _notes.get((op, reason))
    if count is not None or len(_notes) < MAX_NOTES:
        _notes[op, reason] = (count or 0) + 1


def counter(op: str, reason: str | None) -> Callable[[], None]:
    """`note` of these, for one who calls it often and not in torch.compile; without a reason it does nothing."""
    if reason is None:
        return lambda: None
    key = (op, reason)

    def count() -> None:
        try:
            _notes[key] += 1
        except KeyError:
            note(op, reason)

    return count
