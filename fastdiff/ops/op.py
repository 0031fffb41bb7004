"""What an operator is: one object that checks its arguments, decides who computes, and is known to torch by its name.

A subclass of `Op` says what is particular to an operator. What all have in common is here: the choice between the C++
kernel, the Triton kernel and plain PyTorch, the short way past torch's dispatcher, gradients. See docs/write-an-op.md.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastdiff.ops import deciding
from fastdiff.ops.calls import Calls, Plan
from fastdiff.ops.given import expect_kinds
from fastdiff.ops.registration import differentiated, kinds_of, recorded, register, register_backward
from fastdiff.ops.tensors import TYPES
from fastdiff.runtime import choice, dispatcher
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.dispatcher import any_autocast, is_trivial

A = TypeVar("A", bound=NamedTuple)
Tensors = Sequence[Tensor]
Gradients = Sequence[Tensor | None]


class Op(Generic[A]):
    """An operator with arguments of the type A, a NamedTuple whose first field is a tensor, x, or a list of them.

    A subclass has `__call__` with the public signature, which ends in `self.run(Arguments(...))`, and these:

    - `name`: its name everywhere; `types`, `triton_types`: the dtypes of its kernels; `results`: "Tensor", or several.
    - `check(a)`: raises ValueError or TypeError where arguments do not fit.
    - `reference(a, inplace=False)`: the same in plain PyTorch; inplace: it may overwrite what it makes itself.
    - `kernel(a)`: the C++ kernel. `plan(a, cut=None)`, if there is a Triton kernel: all that its launches need and that
      is the same for all arguments of a signature, as a function of such arguments, which launches. It must keep no
      tensor. cut: a tile or plan other than its own choice. Both get checked arguments.
    - `state(a)`: what the plan and the choice depend on beside the arguments and the backend in force, or None.
      `by_state`: names of arguments of which they depend on nothing but what `state` says.
    - `fake(a)`: the results' shapes, dtypes and strides, without values.
    - `limits(a)`, `triton_limits(a)`: why a kernel cannot take this, beyond device and dtype, or None.
    - `slower(a)`: why torch is faster, so that it computes unless the kernel is insisted on, or None;
      `slower_backward(a)`: the same where a gradient is wanted.
    - `kernel_backward(a, gradients, kept)` and `triton_backward`, if there are kernels: a gradient for each tensor of
      the arguments, None where that is None. gradients: of each result; kept: results, at the places `keeps`.
      `undifferentiated(a)`: why they cannot take these arguments, so that torch differentiates the reference, or None.
      `wanted_backward` in place of the former: only the gradients that are wanted.
    """

    name: ClassVar[str]
    types: ClassVar[Any] = TYPES
    triton_types: ClassVar[Any] = TYPES
    results: ClassVar[str] = "Tensor"
    keeps: ClassVar[tuple[int, ...]] = ()
    timed: ClassVar[bool] = True  # whether candidates on a GPU may be timed, and the choice kept, by signature
    by_state: ClassVar[tuple[str, ...]] = ()  # arguments that no signature has: `state` says what depends on them
    Arguments: type[A]

    def __init__(self) -> None:
        self.__name__, self.__module__ = self.name, type(self).__module__
        self.Arguments = type(self).__orig_bases__[0].__args__[0]  # type: ignore[attr-defined]
        self._kinds = kinds = kinds_of(self.Arguments)
        places = [index for index, kind in enumerate(kinds) if kind.startswith("Tensor")]
        # A tuple of tensors, or the one list of them.
        self.tensors: Callable[[A], Any] = itemgetter(*places)
        self.tensor_places, self._list = places, "Tensor[]" in kinds
        by_state = [self.Arguments._fields.index(name) for name in self.by_state]
        self.others = [index for index in range(len(kinds)) if index not in places and index not in by_state]
        self.calls: Calls[A] = Calls(self, self.others)
        self.has_triton = type(self).plan is not Op.plan
        # Whether, with no gradient wanted, device and dtype are all that the C++ kernel asks for.
        self._simple = type(self).limits is Op.limits and type(self).slower is Op.slower
        self._has_backward = type(self).kernel_backward is not Op.kernel_backward
        self._operator = register(self)
        self._backward_operator = register_backward(self) if self._has_backward else None
        # torch.autograd.Function does not follow gradients in lists.
        self._recorded = None if self._list else recorded(self)
        # The same operator in plain PyTorch, with the same signature, unchecked.
        self.plain: Any = copy.copy(self)
        self.plain.run = self.plain.reference  # type: ignore[method-assign]
        # Functions of the Arguments by position, for graphs, whose nodes name what they call.
        self.positional, self.plain.positional = _by_position(self), _by_position(self.plain)

    # ---- what a subclass may leave as it is --------------------------------------------------------------------------

    def check(self, a: A) -> None:
        """Raise ValueError or TypeError where arguments do not fit."""
        raise NotImplementedError

    def reference(self, a: A, inplace: bool = False) -> Any:
        """The same in plain PyTorch."""
        raise NotImplementedError

    def kernel(self, a: A) -> Any:
        """By the C++ kernel."""
        raise NotImplementedError

    def plan(self, a: A, cut: Any = None) -> Plan:
        """The launches of the Triton kernel for arguments like these. cut: a tile or plan other than its own choice."""
        raise NotImplementedError

    def state(self, a: A) -> Any:
        """What else the choice depends on."""
        return None

    def fake(self, a: A) -> Any:
        """The results without values."""
        raise NotImplementedError

    def limits(self, a: A) -> str | None:
        """Why the C++ kernel cannot take this."""
        return None

    def triton_limits(self, a: A) -> str | None:
        """Why the Triton kernel cannot take this."""
        return None

    def slower(self, a: A) -> str | None:
        """Why torch is faster with this."""
        return None

    def slower_backward(self, a: A) -> str | None:
        """Why torch is faster with this where a gradient is wanted."""
        return None

    def kernel_backward(self, a: A, gradients: Tensors, kept: Tensors) -> Gradients:
        """Gradients of the tensors by C++."""
        raise NotImplementedError

    def triton_backward(self, a: A, gradients: Tensors, kept: Tensors) -> Gradients:
        """Gradients of the tensors by Triton."""
        raise NotImplementedError

    def wanted_backward(self, a: A, gradients: Tensors, kept: Tensors, wanted: Sequence[bool]) -> Gradients:
        """By C++, of the tensors that are wanted; what is given for others is not read."""
        return self.kernel_backward(a, gradients, kept)

    def recording(self, a: A) -> A:
        """The arguments of a call of which a gradient may be wanted."""
        return a

    def undifferentiated(self, a: A) -> str | None:
        """Why the kernels of the gradients cannot take this."""
        return None

    # ---- who computes ------------------------------------------------------------------------------------------------

    def run(self, a: A, inplace: bool = False) -> Any:
        """The results, by whoever is chosen. inplace: where that is PyTorch, it may overwrite what it makes itself."""
        if is_compiling():  # Dynamo leaves a function whose `try` it cannot trace, and tries the kernels in its place
            a = self.in_one_type(a) if any_autocast() else a
            self.check(a)
            return self.reference(a, inplace) if self.takes(a) is None else self._operator(*self.recording(a))
        try:
            tensors = self.tensors(a)
            on_cpu = not tensors or tensors[0].is_cpu
            if not on_cpu and tensors[0].is_cuda:
                return self.calls.run(a, tensors, inplace)
            try:
                self.check(a)
            except TypeError:
                a = self.checked(a)  # in one type under autocast; otherwise it raises again
                tensors = self.tensors(a)
            if is_trivial(tensors):
                if self._simple and tensors[0].dtype in self.types and choice.current() == "auto" and on_cpu:
                    return self.kernel(a)  # as `takes` would say, at once
                taker = self.takes(a, ordinary=True)
                if taker is not None:
                    return self.kernel(a) if taker == "cpu" else self.triton(a)
                return self.reference(a, inplace) if not any_autocast() else self.plainly(a, inplace)
            return self._dispatched(a, inplace)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            expect_kinds(a, self._kinds)  # says which argument is of another kind, if that is why
            raise

    def dispatched(self, a: A, inplace: bool) -> Any:
        """The results where somebody traces, transforms or observes the call, on a GPU."""
        a = self.checked(a)
        if dispatcher.is_only_profiled(self.tensors(a)) and choice.current() == "auto":
            with torch.profiler.record_function(f"fastdiff::{self.name}"):
                return self.by_candidate(a)
        return self._dispatched(a, inplace)

    def checked(self, a: A) -> A:
        """The arguments after `check`, which raises; under autocast in one type, where they are not."""
        try:
            self.check(a)
        except TypeError:
            if not any_autocast():
                raise
            a = self.in_one_type(a)
            self.check(a)
        return a

    def _dispatched(self, a: A, inplace: bool) -> Any:
        if self.takes(a) is None:
            return self.reference(a, inplace) if not any_autocast() else self.plainly(a, inplace)
        return self.differentiably(a)

    def differentiably(self, a: A) -> Any:
        """By the kernel, through torch's dispatcher or with its gradients noted."""
        recorded, tensors = self.recording(a), self.tensors(a)
        try:
            if self._recorded is not None and dispatcher.only_wants_gradient(tensors):
                return self._recorded(*recorded)
            return self._operator(*recorded)
        except Exception as error:
            self.gives_way(self.first(a), error)
            return self.plainly(a, False)

    # ---- who computes on a GPU, where no gradient is wanted ----------------------------------------------------------

    def candidates(self, a: A) -> list[Candidate]:
        """All ways to compute a call on a GPU without gradients, in order of preference where nothing is measured."""
        return deciding.found(self, a).candidates

    def decide(self, a: A) -> Candidate:
        """The candidate for this call: by the table, by times kept, or by timing now. a: checked, on a GPU.

        It holds for every call with the same shapes, strides, types and options if it is `settled`; otherwise the next
        call has to ask again. Raises ValueError for an unknown FASTDIFF_TUNE.
        """
        return deciding.decide(self, a)

    def by_candidate(self, a: A) -> Any:
        """The results by the candidate that is decided on, or by the next best if it fails."""
        candidate = self.decide(a)
        try:
            return candidate.run(a)
        except Exception as error:
            return deciding.instead(self, a, candidate, error)

    def gives_way(self, x: Tensor, error: Exception) -> None:
        """Keep why, so that PyTorch takes the place of the Triton kernel; raise the error if that would not help."""
        if not (self.has_triton and runs_on_triton(x) and dispatcher.is_memory(x)):
            raise error
        deciding.triton_failed(self, x, error)
        self.calls.clear()

    def plainly(self, a: A, inplace: bool) -> Any:
        """The reference, in the arguments' own type under autocast too, as the kernels."""
        if not any_autocast():
            return self.reference(a, inplace)
        with torch.autocast(self.first(a).device.type, enabled=False):
            return self.reference(a, inplace)

    def in_one_type(self, a: A) -> A:
        """Under autocast some tensors are halves and others are not: all in the widest of their types, as in torch."""

        def one(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(one, value))
            return value.to(widest) if isinstance(value, Tensor) and value.is_floating_point() else value

        found = [t.dtype for t in self.tensors(a) if t is not None and t.is_floating_point()]
        widest = functools.reduce(torch.promote_types, found)
        return type(a)(*map(one, a))

    def arguments(self, *values: Any, **named: Any) -> A:
        """What a public call makes of its arguments; nothing is checked or computed."""
        found: list[A] = []

        def run(a: A) -> Any:
            found.append(a)
            return self.fake(a)

        asked: Any = copy.copy(self)
        asked.run = run
        asked(*values, **named)
        return found[0]

    def takes(self, a: A, *, ordinary: bool = False) -> str | None:
        """Who computes this: "cpu" (C++), "triton", or None (PyTorch). The one place where it is decided.

        ordinary: torch's dispatcher would do nothing but call a kernel, and no gradient is wanted. Raises
        NotImplementedError if the backend that was insisted on (`fastdiff.use`) cannot take this. What goes to PyTorch
        is kept for `fastdiff.explain`.
        """
        taker, why = self.weigh(a, ordinary)
        if why is not None:
            choice.note(self.name, why)
        return taker

    def weigh(self, a: A, ordinary: bool) -> tuple[str | None, str | None]:
        """Who computes, and why it is PyTorch where that was not asked for."""
        backend = choice.current()
        if backend == "reference":
            return None, None
        x = a[0][0] if self._list else a[0]
        simple = self._simple and x.is_cpu and x.dtype in self.types  # then there is nothing to ask beside the gradient
        reason = slower = None
        if not simple:
            reason = (None if ordinary else dispatcher.transformed()) or self._beyond(a, x)
        if reason is None and backend == "auto":
            slower = None if simple else self.slower(a)
            if slower is None and not ordinary and dispatcher.wants_gradient(a[0] if self._list else a):
                slower = self.slower_backward(a)
            if slower is not None:
                return None, slower
        if simple and not ordinary:
            reason = dispatcher.transformed()
        if reason is None and backend == "auto":
            return "cpu", None
        on_gpu = (lambda: self.unsupported_by_triton(a)) if self.has_triton else None
        picked, why = choice.weigh(reason, slower, triton=on_gpu)
        return None if picked == "reference" else picked, why

    def unsupported(self, a: A) -> str | None:
        """Why the C++ kernel cannot take this, or None."""
        return dispatcher.transformed() or self._beyond(a, self.first(a))

    def _beyond(self, a: A, x: Tensor) -> str | None:
        if x.is_cpu and x.dtype in self.types:
            return self.limits(a)
        if not x.is_cpu:
            return f"{self._first_name} is on {x.device}, and the C++ kernel runs on the CPU"
        return f"the C++ kernel takes {_names(self.types)}, not {x.dtype}"

    def unsupported_by_triton(self, a: A) -> str | None:
        """Why the Triton kernel cannot take this, or None."""
        if not self.has_triton:
            return "there is no Triton kernel for this"
        x = self.first(a)
        if (reason := dispatcher.transformed() or choice.out_of_reach(self._first_name, x)) is not None:
            return reason
        if x.dtype not in self.triton_types:
            return f"Triton's kernel takes {_names(self.triton_types)}, not {x.dtype}"
        return deciding.why_triton_failed(self, x) or self.triton_limits(a)

    def first(self, a: A) -> Tensor:
        return a[0][0] if self._list else a[0]  # type: ignore[index]

    @property
    def _first_name(self) -> str:
        return f"{self.Arguments._fields[0]}[0]" if self._list else self.Arguments._fields[0]

    def triton(self, a: A, cut: Any = None) -> Any:
        """By the Triton kernel, whose launches are prepared once per signature."""
        return self.calls.plan(a, cut)(a)

    # ---- torch.ops.fastdiff.<name> -----------------------------------------------------------------------------------

    def named(self, *values: Any) -> Any:
        """A call of torch.ops.fastdiff.<name>, which may come from anywhere: the kernel gets bare addresses."""
        a = self.Arguments(*values)
        self.check(a)
        self.check_reach(a)
        return self._compute(a)

    def check_reach(self, a: A) -> None:
        """Raise ValueError where the kernel of x's device cannot take the arguments."""
        if not self._on_triton(a) and (reason := self._beyond(a, self.first(a))) is not None:
            raise ValueError(reason)

    def _compute(self, a: A) -> Any:
        if not self._on_triton(a):
            return self.kernel(a)
        try:
            return self.triton(a)
        except Exception as error:
            self.gives_way(self.first(a), error)
            return self._as_fake(a, error)

    def _as_fake(self, a: A, error: Exception) -> Any:
        """The reference's results with the strides that `fake` promises. Raises the error where it lacks one."""
        made, wanted = self.plainly(a, False), self.fake(a)
        if isinstance(wanted, Tensor):
            return wanted.copy_(made)
        if any(x is None and y.numel() for x, y in zip(made, wanted)):
            raise error
        return type(wanted)(y if x is None else y.copy_(x) for x, y in zip(made, wanted))

    def _on_triton(self, a: A) -> bool:
        return self.has_triton and runs_on_triton(self.first(a))

    # ---- gradients ---------------------------------------------------------------------------------------------------

    def save(self, ctx: Any, values: tuple[Any, ...], results: Any) -> None:
        """Keep for `backward` what it needs of the arguments and results."""
        ctx.is_tensor = [isinstance(value, Tensor) for value in values]
        ctx.others = [value for value in values if not isinstance(value, Tensor)]
        kept = [results[place] for place in self.keeps]
        ctx.save_for_backward(*(value for value in values if isinstance(value, Tensor)), *kept)

    def backward(self, ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all arguments: by the kernels, unless gradients of the gradients are wanted."""
        saved, others = iter(ctx.saved_tensors), iter(ctx.others)
        a = self.Arguments(*(next(saved) if is_tensor else next(others) for is_tensor in ctx.is_tensor))
        again = torch.is_grad_enabled()  # a gradient of the gradient is asked for
        if self._backward_operator is not None and not again and self.undifferentiated(a) is None:
            try:
                needed = ctx.needs_input_grad  # torch leaves out arguments at the end that have their defaults
                wanted = [place < len(needed) and needed[place] for place in self.tensor_places]
                by_place = dict(zip(self.tensor_places, self._gradients(a, gradients, tuple(saved), wanted)))
                return tuple(by_place[i] if each else None for i, each in enumerate(needed))
            except Exception as error:
                self.gives_way(self.first(a), error)
        return differentiated(self.reference, a, ctx.needs_input_grad, gradients, again)

    def _gradients(self, a: A, gradients: Tensors, kept: Tensors, wanted: Sequence[bool]) -> Gradients:
        """By the kernels, past the dispatcher where it would only call them."""
        if is_compiling() or not is_trivial((*gradients, *kept, *self.tensors(a))):
            assert self._backward_operator is not None
            return self._backward_operator(*gradients, *kept, *a)
        return self.compute_backward(a, gradients, kept, wanted)

    def compute_backward(
        self, a: A, gradients: Tensors, kept: Tensors, wanted: Sequence[bool] | None = None
    ) -> Gradients:
        """By the kernel of x's device. wanted: by tensor; all if None."""
        if self._on_triton(a):
            return self.triton_backward(a, gradients, kept)
        if wanted is None:
            return self.kernel_backward(a, gradients, kept)
        return self.wanted_backward(a, gradients, kept, wanted)

    def empty_gradients(self, a: A) -> list[Tensor | None]:
        """A tensor without values for the gradient of each tensor, contiguous; None where that is None."""
        return [None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
                for t in self.tensors(a)]  # fmt: skip


def _by_position(op: Op[Any]) -> Callable[..., Any]:
    def positional(*values: Any, **named: Any) -> Any:
        return op.run(op.Arguments(*values, **named))

    positional.__name__ = op.name
    return positional


def runs_on_triton(x: Tensor) -> bool:
    """Whether an operator that has both kernels runs x on the Triton one."""
    return x.is_cuda or choice.current() == "triton"


def _names(types: Any) -> str:
    *first, last = [str(dtype).removeprefix("torch.") for dtype in types]
    return f"{', '.join(first)} and {last}" if first else last
