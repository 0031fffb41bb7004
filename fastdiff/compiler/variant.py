"""One of the ways in which a model is captured: with fixed sizes or symbols, with numbers as constants or tensors."""

from __future__ import annotations

import builtins
import inspect
import sys
import time
import types
import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx, nn

from fastdiff.compiler import substitutes
from fastdiff.compiler.forgetting import forget
from fastdiff.runtime.telling import log

STATES = 32  # captures of one variant, such as of a LoRA's scales; PyTorch's own limit is 8


class Variant:
    """A function that Dynamo captures once for each state of the arguments and the model, up to a number of them."""

    def __init__(
        self,
        module: weakref.ref[nn.Module],
        backend: Callable[..., Any],
        name: str,
        *,
        dynamic: bool,
        with_numbers: bool,
    ) -> None:
        self.dynamic = dynamic
        self.notes: list[str] = []
        self._made = Counter()
        self._called = False
        self._name, self._states, self._with_numbers = name, 0, with_numbers
        self._module, self._backend = module, backend
        self._compiled = self._compile()

    @property
    def graphs(self) -> int:
        """That were captured."""
        return self._made.count

    @property
    def captured(self) -> list[Any]:
        """What runs in their place, of those that are still there."""
        return [graph for reference in self._made.found if (graph := reference()) is not None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        assert module is not None  # it is being called
        graphs, original = self.graphs, module._call_impl
        substitutes.register()
        started = time.perf_counter()
        if not self._called:
            self._called = True
            log.info("capturing %s: its first call takes seconds", self._name)
        if self._options:
            import torch._dynamo.config  # takes a second

            with torch._dynamo.config.patch(self._options), self._symbols():
                result = self._compiled(original, *args, **kwargs)
        else:
            result = self._compiled(original, *args, **kwargs)
        if self.graphs != graphs:
            self._made.done()
            log.info("captured %s in %.1f s", self._name, time.perf_counter() - started)
            self._count()
        return result

    def _symbols(self) -> AbstractContextManager[Any]:
        """Equal sizes get symbols of their own: otherwise a capture of a square is for squares alone."""
        if not self.dynamic:
            return nullcontext()
        import torch.fx.experimental._config

        config: Any = torch.fx.experimental._config
        return config.patch(use_duck_shape=False) if hasattr(config, "use_duck_shape") else nullcontext()

    def without_symbols(self) -> None:
        """Capture each size by itself from here on."""
        self.dynamic = False
        self._compiled = self._compile()

    def _count(self) -> None:
        self._states += 1
        if self._states == STATES:
            note = (
                f"was captured for {STATES} states of its arguments and adapters, which is the limit: in others it "
                "runs as it was written"
            )
            self.notes.append(note)
            warnings.warn(f"fastdiff: {self._name} {note}", stacklevel=6)

    def _compile(self) -> Callable[..., Any]:
        backend, made, name = self._backend, self._made, self._name  # not self, which would keep itself

        def counted(captured: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
            if made.count:
                log.info("capturing %s once more, for other arguments", name)
            made.count += 1
            made.under_way(captured)
            found = backend(captured, inputs)
            made.found.append(weakref.ref(found))
            return found  # type: ignore[no-any-return]

        self._options: dict[str, Any] = {}
        if self.dynamic:  # sizes are symbols, and no other numbers
            self._options = {"specialize_float": True, "specialize_int": True}
        if self._with_numbers:
            self._options["capture_scalar_outputs"] = True
        limit: dict[str, Any] = {"recompile_limit": STATES}
        if "recompile_limit" not in inspect.signature(torch.compile).parameters:
            self._options |= limit if _is_setting("recompile_limit") else {"cache_size_limit": STATES}
            limit = {}
        # Dynamo keeps what it compiled, and counts it, by code object, and puts it into the function's globals for
        # good: each model gets its own of both.
        function = _call_with_numbers if self._with_numbers else _call
        own = types.FunctionType(
            function.__code__.replace(), {"__builtins__": builtins, "__name__": __name__}, function.__name__
        )
        weakref.finalize(self, forget, own).atexit = False
        return torch.compile(own, backend=counted, dynamic=self.dynamic, **limit)


class Counter:
    """What was captured: how often, and what runs in its place."""

    def __init__(self) -> None:
        self.count = 0
        self.found: list[weakref.ref[Any]] = []
        self._memos: list[Any] = []

    def under_way(self, captured: fx.GraphModule) -> None:
        """A graph is being captured: note where PyTorch keeps weak references to its parameters meanwhile."""
        context: Any = torch._guards.TracingContext.try_get()
        modes = {id(mode): mode for mode in (getattr(context, "fake_mode", None), *map(_mode, captured.graph.nodes))}
        self._memos.append(getattr(context, "tensor_to_context", None))
        for mode in modes.values():
            if mode is not None:
                self._memos.append(mode.fake_tensor_converter.meta_converter.describer.lookup_tensor)

    def done(self) -> None:
        """Drop these references, as PyTorch does where the back end is its own: `torch.utils.swap_tensors` refuses a
        tensor that has one."""
        for memo in self._memos:
            if memo is not None:
                memo.clear()
        self._memos.clear()


def _mode(node: fx.Node) -> Any:
    """That made the example of a node."""
    return getattr(node.meta.get("example_value"), "fake_mode", None)


def _call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs)


def _call_with_numbers(original: Callable[..., Any], places: Any, numbers: Any, args: Any, kwargs: Any) -> Any:
    given, named = list(args), dict(kwargs)
    for place, number in zip(places, numbers):
        if isinstance(place, int):
            given[place] = number.item()
        else:
            named[place] = number.item()
    return original(*given, **named)


def _is_setting(name: str) -> bool:
    """Whether Dynamo has a setting of this name."""
    import torch._dynamo.config

    return hasattr(torch._dynamo.config, name)


def could_not_capture(error: Exception) -> bool:
    """Whether this comes from capturing a model, and not from the model."""
    dynamo: Any = sys.modules.get("torch._dynamo.exc")
    return dynamo is not None and isinstance(error, dynamo.TorchDynamoException)
