"""What a sweep measures: cases in float16 of the operators whose candidates may be timed, with all their candidates.

Without a device, `names` says which candidates there would be, so that tables hold no others.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

from fastdiff.bench import gradients
from fastdiff.bench.cases import Case, swept
from fastdiff.bench.measured import Measured, MeasuredCase
from fastdiff.ops import OPS, deciding
from fastdiff.ops.candidates import OTHERS
from fastdiff.runtime import choice, device
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.triton import MISSING
from fastdiff.runtime.tuning import Problem

# Of those that only PyTorch on a GPU knows whether it can take.
OF_PYTORCH = {"attention": ("cudnn", "flash", "efficient")}


def cases() -> list[tuple[str, Case]]:
    """(part, case) of all: the operators, then the kernels of attention's gradients."""
    forward = [("", case) for op in OPS.values() if op.timed for case in swept(op.name)]
    return forward + [(part, case) for case in swept("attention", "sweep-gradients") for part in gradients.PARTS]


def problem(part: str, case: Case, where: str) -> tuple[Problem, list[Candidate]]:
    """What is measured of a case on a device, and further candidates: tiles and plans beside those of a call."""
    op: Any = OPS[case.op]
    a = op.arguments(**case.make(device=where))
    if part:
        return gradients.problem(part, op, a)
    found = deciding.problem(op, a, (op.name, *deciding.signature(op, a)))
    return found, _others(op, a, found.candidates)


def names(case: MeasuredCase, file: Measured) -> set[str] | None:
    """Of the candidates that a case would have on the file's device; None where a sweep has no such case. Raises
    NotImplementedError without Triton, whose kernels make the plans."""
    if MISSING is not None:
        raise NotImplementedError(f"candidates cannot be named: {MISSING}")
    of = next((c for part, c in cases() if (part, c.op, c.shape, c.detail) == _key(case)), None)
    if of is None:
        return None
    op: Any = OPS[case.op]
    a = op.arguments(**of.make(device="meta"))
    exact = file.architecture
    there = device.Device(device.tables_of(exact), file.multiprocessors, file.l2_bytes, exact)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(device, "ABSENT", there))
        stack.enter_context(mock.patch.object(choice, "out_of_reach", _within_reach))
        if case.part:
            return {c.name for c in gradients.candidates(case.part, a)}
        found = deciding.found(op, a).candidates
        return {*OF_PYTORCH.get(case.op, ()), *(c.name for c in [*found, *_others(op, a, found)])}


def _within_reach(name: str, tensor: Any) -> None:
    """In place of choice.out_of_reach, for tensors that are nowhere."""


def _key(case: MeasuredCase) -> tuple[Any, ...]:
    return case.part, case.op, case.shape, case.detail


def _others(op: Any, a: Any, found: list[Candidate]) -> list[Candidate]:
    known = {c.name for c in found}
    return [c for c in OTHERS[op.name](op, a) if c.name not in known] if op.name in OTHERS else []
