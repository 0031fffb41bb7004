"""A module that runs through the compiler, and the way back. The public functions are in fastdiff/optimizing.py."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import nn

from fastdiff.compiler.arguments import Place, as_tensor, converted, has_numpy, numbers, replaced, shapes
from fastdiff.compiler.branches import Branches
from fastdiff.compiler.capture import Told, check_passes, compile_graph
from fastdiff.compiler.hooks import Hooks
from fastdiff.compiler.numbers import Numbers
from fastdiff.compiler.precision import Precision
from fastdiff.compiler.report import Report, discard, recorded, reports_of
from fastdiff.compiler.reuse import with_reuse
from fastdiff.compiler.variant import Variant, could_not_capture
from fastdiff.compiler.verify import verified_call
from fastdiff.runtime import contents, eager, graphs
from fastdiff.runtime.fingerprint import renew
from fastdiff.runtime.memory import release
from fastdiff.runtime.offloading import moved
from fastdiff.runtime.reuse import Caching

_CALL = "_compiled_call_impl"  # what nn.Module.__call__ runs in place of forward and hooks, if it is set
_STATES = 4  # sets of hooks whose captures are kept


class Captures:
    """What was captured of a module with one set of hooks."""

    def __init__(self) -> None:
        self.shapes: dict[Any, Any] = {}  # by their place among the arguments
        self.last: tuple[Any, bool] = ((), False)
        self.variants: dict[tuple[bool, bool], Variant] = {}
        self.refused: set[Any] = set()  # shapes with which nothing could be captured
        self.called = False
        self.moved = False  # whether hooks moved weights when something of it was captured


class FastCall:
    """What a module runs when it is called: captured for the shapes of the first call, and once more for any others.

    Numbers among the arguments are constants of a capture. Those that change from call to call, and are only computed
    with, go into another capture as tensors.
    """

    def __init__(
        self,
        module: nn.Module,
        disable: Sequence[str],
        verify: bool,
        precision: Precision | None = None,
        branches: Branches | None = None,
    ) -> None:
        self._module = weakref.ref(module)  # which holds this
        self.name = type(module).__name__
        self._verify = verify  # the next call
        self._failed = False
        self.disable, self._told, self.precision = tuple(disable), Told(self.name), precision
        self.branches = branches  # of its calls, if they reuse what others computed
        self._hooks = Hooks(module)
        self._captures, self._others = Captures(), OrderedDict[Hashable, Captures]()  # others: by the hooks' state
        self._numbers = Numbers(functools.partial(_run, self._module))

    @property
    def original(self) -> Callable[..., Any]:
        """The module's forward with its hooks."""
        module = self._module()
        assert module is not None  # it is being called
        return module._call_impl

    @property
    def notes(self) -> list[str]:
        """What ended on the way, for `explain`."""
        of_captures = (note for each in self._captures.variants.values() for note in each.notes)
        return [*self._numbers.notes, *of_captures]

    @property
    def reports(self) -> list[Report]:
        """Of all that was captured, whatever became of the parameters since."""
        states = [self._captures, *self._others.values()]
        return [graph.report for state in states for each in state.variants.values() for graph in each.captured]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._failed or eager.wanted() is not None or eager.traced():
            return self.original(*args, **kwargs)
        if self.branches is None:
            return self._checked(*args, **kwargs)
        with self.branches.call(args, kwargs):
            return self._checked(*args, **kwargs)

    def _checked(self, *args: Any, **kwargs: Any) -> Any:
        if self._verify:
            result, same = verified_call(self._fast, self.original, args, kwargs)
            self._verify, self._failed = same is None, same is False
            return result
        return self._fast(*args, **kwargs)

    def _fast(self, *args: Any, **kwargs: Any) -> Any:
        before = self._hooks.state
        if self._hooks.changed():
            self._with_other_hooks(before)
        if self._captures.moved and _moved(self._module) is None:
            self._captures = Captures()  # the hooks are gone; Dynamo would leave for good what it left for them
        given = shapes(args, kwargs)
        if self._captures.refused and given in self._captures.refused:
            return self.original(*args, **kwargs)
        if has_numpy(args) or has_numpy(kwargs):
            convert = self._numbers.conversion(args, kwargs)
            if convert is None:
                return self.original(*args, **kwargs)
            args, kwargs = converted((args, kwargs), convert)
        changing: tuple[Place, ...] = ()
        if found := numbers(args, kwargs):
            changing, asked = self._numbers.changing(found, given)
            if asked:
                return self._numbers.ask(args, kwargs, asked)
        variant = self._variant(self._is_dynamic(given), bool(changing))
        try:
            if changing:
                return self._with_numbers(variant, changing, args, kwargs)
            if not self._captures.called:
                self._captures.called = True
                return self._captured(variant, args, kwargs)
            return variant(*args, **kwargs)
        except Exception as error:
            if not could_not_capture(error) or graphs.capturing():  # there Dynamo may not work, and will elsewhere
                raise
            result = self.original(*args, **kwargs)  # raises what the model itself raises, if it does
            self._give_up(variant, given, error)
            return result

    def _is_dynamic(self, given: Any) -> bool:
        """Whether there is a tensor at a place that had another shape. Names and numbers do not count."""
        if given == self._captures.last[0]:
            return self._captures.last[1]
        dynamic = any(self._captures.shapes.get(place, shape) != shape for place, shape in given)
        if not dynamic:
            self._captures.shapes.update(given)
        self._captures.last = (given, dynamic)
        return dynamic

    def _with_numbers(self, variant: Variant, places: tuple[Place, ...], args: Any, kwargs: Any) -> Any:
        values = dict((*enumerate(args), *kwargs.items()))
        tensors = [as_tensor(values[place]) for place in places]
        args, kwargs = replaced(args, kwargs, dict.fromkeys(places))
        graphs = variant.graphs
        with recorded() as made:
            result = variant(places, tensors, args, kwargs)
        if variant.graphs != graphs and len(made) != 1:  # a capture in parts: something was decided after all
            self._numbers.are_constants(places)
        return result

    def _captured(self, variant: Variant, args: Any, kwargs: Any) -> Any:
        """The first call, with a warning if not all of the model went into one graph."""
        from torch._dynamo.utils import counters

        before = counters["graph_break"].copy()
        with recorded() as made:
            result = variant(*args, **kwargs)
        reasons = [reason for reason, count in counters["graph_break"].items() if count > before[reason]]
        if len(made) == 1 and not reasons:
            return result
        why = reasons[0].strip().splitlines()[0] if reasons else "it holds nothing that PyTorch can capture"
        for report in made:
            report.part = why
        what = f"was captured in {len(made)} parts, what is between them" if made else "could not be captured and"
        warnings.warn(f"fastdiff: the model {what} runs as it was written: {why}", stacklevel=5)
        return result

    def _give_up(self, variant: Variant, given: Any, error: Exception) -> None:
        """Capture each size by itself if it was symbols that could not be captured, else leave these arguments."""
        if variant.dynamic:
            variant.without_symbols()
            return
        self._captures.refused.add(given)
        why = str(error).strip().splitlines()[0]
        note = f"could not be captured with arguments of these shapes, and runs as it was written: {why}"
        variant.notes.append(note)
        warnings.warn(f"fastdiff: {self.name} {note}", stacklevel=5)

    def _with_other_hooks(self, before: Hashable) -> None:
        """Go on with what was captured with these hooks, or nothing; what was captured with those before is kept."""
        self._others[before] = self._captures
        while len(self._others) > _STATES:
            self._others.popitem(last=False)
        known = self._hooks.state in self._others
        self._captures = self._others.pop(self._hooks.state) if known else Captures()

    def _variant(self, dynamic: bool, with_numbers: bool) -> Variant:
        variant = self._captures.variants.get((dynamic, with_numbers))
        if variant is None:
            backend = functools.partial(
                compile_graph,
                disable=self.disable,
                told=self._told,
                precision=self.precision,
                model=self._module,
                moved=functools.partial(_moved, self._module, weakref.ref(self._captures)),
                cut=None if self.branches is None else with_reuse(self.branches, self._told),
            )
            variant = Variant(self._module, backend, self.name, dynamic=dynamic, with_numbers=with_numbers)
            self._captures.variants[dynamic, with_numbers] = variant
        return variant


def _run(module: weakref.ref[nn.Module], *args: Any, **kwargs: Any) -> Any:
    """Call the original."""
    found = module()
    assert found is not None  # it is being called
    return found._call_impl(*args, **kwargs)


def _moved(module: weakref.ref[nn.Module], noted: weakref.ref[Captures] | None = None) -> str | None:
    """Which hook moves the weights. noted: where to note that one does."""
    found = module()
    reason = None if found is None else moved(found.modules())
    if reason is not None and noted is not None and (captures := noted()) is not None:
        captures.moved = True
    return reason


def optimize_module(
    module: nn.Module,
    *,
    verify: bool = False,
    disable: Sequence[str] = (),
    precision: Precision | None = None,
    reuse: Caching | None = None,
    runs: Callable[[], tuple[Any, ...]] | None = None,
) -> None:
    """`fastdiff.optimize` of a module. runs: see `Branches`. Raises ValueError for the name of a pass that does not
    exist."""
    check_passes(disable)
    branches = None if reuse is None else Branches(reuse, module, runs)
    setattr(module, _CALL, FastCall(module, disable, verify, precision, branches))


def restore_module(module: nn.Module) -> None:
    """`fastdiff.restore` of a module and its parts."""
    for each in module.modules():
        if isinstance(getattr(each, _CALL, None), FastCall):
            setattr(each, _CALL, None)
            for tensor in (*each.parameters(), *each.buffers()):
                contents.forget(tensor)
            discard([*each.parameters()])
    release()


def refresh_module(module: nn.Module) -> None:
    """`fastdiff.refresh` of a module and its parts."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        contents.forget(tensor)
    for report in reports_of_module(module):
        if report.graph is not None:
            report.graph.refresh()
    renew(module)
    for each in module.modules():
        graphs.forget(each)


def reports_of_module(module: nn.Module) -> list[Report]:
    """The reports of a module's graphs, and of its parts', oldest first; also where all parameters were replaced."""
    found = {id(report): report for report in reports_of([*module.parameters(), *module.buffers()])}
    for each in module.modules():
        if isinstance(call := getattr(each, _CALL, None), FastCall):
            found.update((id(report), report) for report in call.reports)
    return [*found.values()]
