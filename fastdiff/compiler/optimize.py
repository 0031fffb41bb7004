"""A module that runs through the compiler, and the way back. The public functions are in fastdiff/optimizing.py."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.compiler.capture import Told, check_passes, compile_graph
from fastdiff.compiler.report import recorded
from fastdiff.compiler.verify import verified_call
from fastdiff.runtime import eager

_CALL = "_compiled_call_impl"  # what nn.Module.__call__ runs in place of forward and hooks, if it is set


class FastCall:
    """What a module runs when it is called: captured for the shapes of the first call, and once more for any others."""

    def __init__(self, module: nn.Module, disable: Sequence[str], verify: bool) -> None:
        self.original = module._call_impl
        self._verify = verify  # the next call
        self._failed = False
        self.disable, self._told = tuple(disable), Told(type(module).__name__)
        self._first: Any = None
        self._static = self._compiled(dynamic=False)
        self._dynamic: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._failed or eager.wanted() is not None:
            return self.original(*args, **kwargs)
        if self._verify:
            result, same = verified_call(self._fast, self.original, args, kwargs)
            self._verify, self._failed = same is None, same is False
            return result
        return self._fast(*args, **kwargs)

    def _fast(self, *args: Any, **kwargs: Any) -> Any:
        signature = _signature((args, kwargs))
        if self._first is None:
            self._first = signature
            return self._captured(args, kwargs)
        if signature == self._first:
            return self._static(*args, **kwargs)
        if self._dynamic is None:
            self._dynamic = self._compiled(dynamic=True)
        import torch._dynamo.config  # takes a second

        with torch._dynamo.config.patch(specialize_float=True):  # a model's constants stay constants
            return self._dynamic(*args, **kwargs)

    def _captured(self, args: Any, kwargs: Any) -> Any:
        """The first call, with a warning if not all of the model went into one graph."""
        from torch._dynamo.utils import counters

        before = counters["graph_break"].copy()
        with recorded() as made:
            result = self._static(*args, **kwargs)
        reasons = [reason for reason, count in counters["graph_break"].items() if count > before[reason]]
        if len(made) == 1 and not reasons:
            return result
        why = reasons[0].strip().splitlines()[0] if reasons else "it holds nothing that PyTorch can capture"
        for report in made:
            report.part = why
        what = f"was captured in {len(made)} parts, what is between them" if made else "could not be captured and"
        warnings.warn(f"fastdiff: the model {what} runs as it was written: {why}", stacklevel=5)
        return result

    def _compiled(self, dynamic: bool) -> Callable[..., Any]:
        original = self.original

        def call(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs)

        # Dynamo keeps what it compiled, and counts it, by code object: each model gets its own.
        own = types.FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
        backend = functools.partial(compile_graph, disable=self.disable, told=self._told)
        return torch.compile(own, backend=backend, dynamic=dynamic)


def optimize_module(module: nn.Module, *, verify: bool = False, disable: Sequence[str] = ()) -> None:
    """`fastdiff.optimize` of a module. Raises ValueError for the name of a pass that does not exist."""
    check_passes(disable)
    setattr(module, _CALL, FastCall(module, disable, verify))


def restore_module(module: nn.Module) -> None:
    """`fastdiff.restore` of a module and its parts."""
    for each in module.modules():
        if isinstance(getattr(each, _CALL, None), FastCall):
            setattr(each, _CALL, None)


def _signature(x: Any) -> Any:
    """Shapes of the tensors, and numbers, in the arguments."""
    if isinstance(x, Tensor):
        return x.shape
    if isinstance(x, dict):
        return tuple((key, _signature(each)) for key, each in x.items())
    if isinstance(x, (list, tuple)):
        return tuple(map(_signature, x))
    return x if isinstance(x, (int, float)) else None
