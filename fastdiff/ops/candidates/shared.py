"""What the candidates of all operators share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from fastdiff.ops.tensors import TYPES
from fastdiff.runtime import choice
from fastdiff.runtime.candidates import TORCH, Candidate


class Found(NamedTuple):
    """candidates: in order of preference, PyTorch among them; features: what rows of the table ask for, None where no
    row can hold; absent: names of candidates that cannot be there, with the reason."""

    candidates: list[Candidate]
    features: dict[str, int] | None = None
    absent: Mapping[str, str] = MappingProxyType({})


def torch_candidate(op: Any) -> Candidate:
    """The operator in plain PyTorch, which overwrites what it makes itself."""
    return Candidate(TORCH, lambda a: op.plainly(a, True))


def triton_candidates(op: Any, a: Any, more: Callable[[], list[Candidate]] | None = None) -> list[Candidate]:
    """Our kernel as it chooses itself, and more(), where Triton can take the call; otherwise none."""
    if op.unsupported_by_triton(a) is not None:
        return []
    return [triton_candidate(op, "triton"), *(more() if more is not None else [])]


def triton_candidate(op: Any, name: str, cut: Any = None) -> Candidate:
    """Our kernel, with a tile or plan that is not its own choice if there is a `cut`."""
    return Candidate(name, lambda a: op.triton(a, cut), prepare=lambda a: op.calls.plan(a, cut))


def beyond_pointwise(x: Tensor) -> str | None:
    """Why the kernels that follow a product (kernels/pointwise) cannot take its result, or None; x: its input."""
    if x.dtype not in TYPES:
        return f"the kernel takes no {str(x.dtype).removeprefix('torch.')}"
    return choice.out_of_reach("x", x)


def default(op: Any, a: Any) -> Found:
    """Of an operator without candidates of its own: its Triton kernel, then PyTorch."""
    return Found([*triton_candidates(op, a), torch_candidate(op)])
