"""Calls of an operator on a GPU: what is checked and decided is kept by the call's signature.

The signature is all that checks, choice and launch depend on: the tensors' kinds, shapes, strides, dtypes, devices and
whether a gradient is wanted, the other arguments, the backend in force. A call of a known signature costs one look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from fastdiff.ops import deciding
from fastdiff.runtime import choice
from fastdiff.runtime.candidates import TORCH, Candidate
from fastdiff.runtime.dispatcher import any_autocast, in_forward_mode, is_memory, is_watched, wants_gradient

if TYPE_CHECKING:
    from fastdiff.ops.op import Op

MAX_KEPT = 1024  # signatures of an operator: a U-Net has about 30 for each of several resolutions
_grad_enabled = torch.is_grad_enabled

A = TypeVar("A", bound=tuple)
Run = Callable[[Any, bool], Any]  # of the arguments and `inplace`
Plan = Callable[[Any], Any]  # of the arguments


class Calls(Generic[A]):
    """The calls of an operator, which holds it by `decide` and `plan`. No tensor is kept."""

    def __init__(self, op: Op[Any], others: Sequence[int]) -> None:
        self._op = op
        self._others: Callable[[Any], Any] = itemgetter(*others) if others else lambda a: None
        self._runs: dict[Any, Run] = {}
        self._plans: dict[Any, Plan] = {}

    def run(self, a: Any, tensors: Sequence[Tensor | None], inplace: bool) -> Any:
        """The results of a call, by whoever is chosen for its signature."""
        op = self._op
        if not op.has_triton:
            return self._without_kernel(a, tensors, inplace)
        if tensors[0].__class__ is FakeTensor or is_observed(tensors):
            return op.dispatched(a, inplace)
        grad = _grad_enabled()
        try:
            key = (
                choice.current(), grad, self._others(a), op.state(a),
                tuple([
                    # Functional, batched, sparse and zero tensors have no address, or raise an error.
                    None if t is None else (
                        t.__class__, t.shape, t.stride(), t.dtype, t.get_device(), t.is_neg(), t.data_ptr() == 0,
                        grad and t.requires_grad,
                    )
                    for t in tensors
                ]),
            )  # fmt: skip
            run = self._runs.get(key)
        except (TypeError, RuntimeError):  # sizes that are symbols, tensors without strides or without memory
            return op.dispatched(a, inplace)
        if run is None:
            return self._first(key, a, tensors, inplace)
        return run(a, inplace)

    def _first(self, key: Any, a: Any, tensors: Sequence[Tensor | None], inplace: bool) -> Any:
        """The first call of a signature."""
        op = self._op
        if (known := op.checked(a)) is not a:
            return op.run(known, inplace)
        if is_observed(tensors) or not all(t is None or is_memory(t) for t in tensors):
            return op.dispatched(a, inplace)
        run, holds = self._chosen(a, wants_gradient(tensors))
        if holds:
            _keep(self._runs, key, run)
        return run(a, inplace)

    def _without_kernel(self, a: Any, tensors: Sequence[Tensor | None], inplace: bool) -> Any:
        """The results where there is no kernel, so that whoever observes or transforms the call sees PyTorch's."""
        op = self._op
        try:
            key = (
                choice.current(), _grad_enabled() and wants_gradient(tensors), self._others(a),
                tuple([None if t is None else (t.shape, t.stride(), t.dtype, t.get_device()) for t in tensors]),
            )  # fmt: skip
            run = self._runs.get(key)
        except (TypeError, RuntimeError):
            return op.dispatched(a, inplace)
        return self._first(key, a, tensors, inplace) if run is None else run(a, inplace)

    def _chosen(self, a: Any, wants_gradient: bool) -> tuple[Run, bool]:
        """What computes calls that have a's signature, with nobody observing, and whether it may be kept."""
        op = self._op
        if not wants_gradient and choice.current() == "auto":
            candidate = op.decide(a)
            run = self._by_torch(None) if candidate.name == TORCH else self._guarded(candidate, a)
            return run, candidate.settled or not op.timed
        taker, why = op.weigh(a, ordinary=not wants_gradient)
        if taker is None:
            return self._by_torch(why), True
        if taker == "triton" and not wants_gradient:
            plan = self.plan(a)
            return lambda a, inplace: plan(a), True
        compute = op.differentiably if wants_gradient else op.kernel
        return lambda a, inplace: compute(a), True

    def _by_torch(self, why: str | None) -> Run:
        """The reference, in as few calls of Python as can be. why: for `explain`, if there is a reason to give."""
        op = self._op
        count, reference, plainly = choice.counter(op.name, why), op.reference, op.plainly

        def run(a: Any, inplace: bool) -> Any:
            count()
            return plainly(a, inplace) if any_autocast() else reference(a, inplace)

        return run

    def _guarded(self, candidate: Candidate, a: Any) -> Run:
        """A candidate for calls like a, or the next best if it fails."""
        op, watched = self._op, not self._op.has_triton  # then nobody else asks
        try:
            run = candidate.run if candidate.prepare is None else candidate.prepare(a)
        except Exception:
            run = candidate.run  # which fails as well, in the call

        def guarded(a: Any, inplace: bool) -> Any:
            if watched and is_observed(op.tensors(a)):
                return op.dispatched(a, inplace)
            try:
                return run(a)
            except Exception as error:
                self.clear()
                return deciding.instead(op, a, candidate, error)

        return guarded

    def plan(self, a: Any, cut: Any = None) -> Plan:
        """The operator's plan of launches for arguments, made once for a signature. Whoever asks has checked them.
        cut: as of Op.plan."""
        op = self._op
        tensors = op.tensors(a)
        key = (
            self._others(a), op.state(a), cut,
            tuple([None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors]),
        )  # fmt: skip
        plan = self._plans.get(key)
        if plan is None:
            plan = op.plan(a, cut)
            _keep(self._plans, key, plan)
        return plan

    def clear(self) -> None:
        """Forget all signatures."""
        self._runs.clear()
        self._plans.clear()


def is_observed(tensors: Sequence[Tensor | None]) -> bool:
    """Whether somebody traces, transforms or observes the call."""
    return is_watched(tensors) or in_forward_mode()


def _keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """The oldest goes where there are too many. Two threads may both find that there are."""
    while len(kept) >= MAX_KEPT:
        kept.pop(next(iter(kept), None), None)
    kept[key] = value
