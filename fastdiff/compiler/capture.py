"""From a graph that Dynamo captured to the function that runs in its place."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fastdiff.compiler import effects, mutations, ownership, strides, written
from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.passes import PASSES, invariants, normalize
from fastdiff.compiler.precision import Precision, mark
from fastdiff.compiler.replay import Replays
from fastdiff.compiler.report import Notes, Report, record
from fastdiff.compiler.stored import Stored
from fastdiff.errors import unknown
from fastdiff.runtime import graphs
from fastdiff.runtime.dispatcher import any_autocast


class FastGraph:
    """A captured graph after the passes. original: as it was captured. Called with the graph's inputs.

    device: of the tensors, if there are graphs on it: then calls are replays of a CUDA graph where they can be.
    moved: why the weights lie elsewhere in every call, if they do.
    observer: called with the graph and its inputs before every call, while `verify` and `explain` look.
    """

    observer: ClassVar[Callable[[FastGraph, tuple[Any, ...]], object] | None] = None

    def __init__(
        self, original: fx.GraphModule, module: fx.GraphModule, report: Report, device: torch.device | None = None,
        moved: str | None = None,
    ) -> None:  # fmt: skip
        self.original, self.module, self.report = original, module, report
        self.stored = Stored(module)
        self.replays = None if device is None else Replays(module, module.forward, device, moved)
        self._run = module.forward if self.replays is None else self.replays
        self._written = mutations.written_inputs(module.graph)

    def __call__(self, *inputs: Any) -> Any:
        self.report.calls += 1
        if FastGraph.observer is not None:
            FastGraph.observer(self, inputs)
        if self._written and _share_memory(inputs, self._written):
            return self.original.forward(*inputs)
        if not self.stored:
            return self._run(*inputs)
        self.stored(inputs)
        try:
            return self._run(*inputs)
        finally:
            self.stored.done()

    def explain(self) -> list[tuple[str, str]]:
        """How it runs, beside what the passes say: lines with their names."""
        return [] if self.replays is None else [("on a GPU", line) for line in self.replays.explain()]

    def refresh(self) -> None:
        """Keep nothing of the calls until now."""
        if self.replays is not None:
            self.replays.forget()
        for part in self.module.modules():
            if isinstance(part, invariants.Kept):
                part.forget()


class AsWritten:
    """A captured graph that runs as it was captured, which is counted."""

    def __init__(self, captured: fx.GraphModule, report: Report) -> None:
        self.report, self._run = report, captured.forward

    def __call__(self, *inputs: Any) -> Any:
        self.report.calls += 1
        return self._run(*inputs)


class Told:
    """Warns that a model is not made faster, once for each reason. name: of the model, for the message."""

    def __init__(self, name: str = "a compiled model") -> None:
        self._name, self._reasons = name, set[str]()

    def __call__(self, reason: str, what: str = "runs as it was written, and not faster") -> None:
        """Say so, if it is new."""
        if reason not in self._reasons:
            self._reasons.add(reason)
            warnings.warn(f"fastdiff: {self._name} {what}: {reason}", stacklevel=3)


def _not_wanted(tensors: Sequence[Tensor]) -> str | None:
    """Why what PyTorch was asked for is not what the operators give, or None."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "a gradient is wanted; call it under torch.no_grad() or torch.inference_mode()"
    if any_autocast():
        return "torch.autocast is in force, which chooses the types; convert the model with model.to(dtype) instead"
    return None


def compile_graph(
    captured: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    disable: Sequence[str] = (),
    told: Told | None = None,
    model: weakref.ref[torch.nn.Module] | None = None,
    moved: Callable[[], str | None] = lambda: None,
    precision: Precision | None = None,
    cut: Callable[[fx.GraphModule, Report, Sequence[str], torch.device | None, str | None], Any] | None = None,
) -> Callable[..., Any]:
    """What Dynamo calls: the graph with the passes applied, but for those named in `disable`.

    Where a gradient is wanted, under autocast, or where a pass finds something that it must not touch, the graph runs
    as it was captured; a pass that fails is undone. All are in the report that `fastdiff.explain` shows, the last and
    the first two with a warning too, by `told`.
    model: for the report. moved: says why the weights lie elsewhere in every call, if they do. precision: that of
    layers, if it is lower. cut: makes several graphs of one, see `reuse`; None where it cannot.
    """
    check_passes(disable)
    written.mend(captured)
    started = time.perf_counter()
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    report = Report(tuple(_shape(x) for x in inputs if isinstance(x, Tensor) and not _is_parameter(x)), model=model)
    report.dtypes = tuple(x.dtype for x in tensors if not _is_parameter(x))
    report.weights = tuple(dict.fromkeys(x.dtype for x in tensors if _is_parameter(x)))
    report.dynamic = any(isinstance(x, torch.SymInt) for x in inputs)
    for tensor in tensors:
        if _is_parameter(tensor):
            report.parameter(tensor)
    record(report)
    if (reason := _not_wanted(tensors)) is not None:
        report.fallback = reason
        (told or Told())(reason)
        return AsWritten(captured, report)
    device = next((x.device for x in tensors if x.device.type == graphs.graph_type.device_type), None)
    try:
        mark(captured.graph, inputs, model, precision)
        prepared = prepare(captured)
        fast = None if cut is None else cut(prepared, report, disable, device, moved())
        if fast is None:
            fast = FastGraph(captured, transform(prepared, report, disable), report, device, moved())
    except Unsupported as error:
        report.fallback = str(error)
        return AsWritten(captured, report)
    finally:
        report.seconds = time.perf_counter() - started
    report.graph = fast
    return fast  # type: ignore[no-any-return]


def prepare(captured: fx.GraphModule) -> fx.GraphModule:
    """A copy of the captured graph in the vocabulary of the passes."""
    module = copy_of(captured)
    for node in module.graph.nodes:
        node.meta["origin"] = node.name
        node.meta.pop("grapharg", None)  # has a weak reference to the input
    strides.note(module.graph)
    normalize.apply(module.graph)
    return module


def transform(module: fx.GraphModule, report: Report, disable: Sequence[str] = ()) -> fx.GraphModule:
    """The graph, which is changed, after the passes. One that fails is undone: all begin again without it."""
    left_out = dict.fromkeys(disable, "turned off")
    started = len(report.passes)
    before = copy_of(module)  # once, as to copy a graph takes longer than most passes do
    while (failed := _apply_passes(module, report, left_out)) is not None:
        left_out |= failed
        del report.passes[started:]
        module, before = before, copy_of(before)
    ownership.own_results(module.graph)
    strides.restore(module.graph)
    mutations.own(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def _apply_passes(module: fx.GraphModule, report: Report, left_out: Mapping[str, str]) -> dict[str, str] | None:
    """All but those left out, for the reasons that are given. Returns the name and the error of one that failed."""
    for name, apply in PASSES.items():
        notes = Notes(name)
        report.passes.append(notes)
        if name in left_out:
            notes.error = left_out[name]
            continue
        started = time.perf_counter()
        try:
            apply(module.graph, notes)
            module.graph.eliminate_dead_code(effects.must_run)
            module.graph.lint()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            warnings.warn(f"fastdiff: the pass {name!r} failed and was undone: {said}", stacklevel=2)
            return {name: said}
        notes.seconds = time.perf_counter() - started
    return None


def _share_memory(inputs: Sequence[Any], places: Sequence[int]) -> bool:
    """Whether another input lies in the memory of one of these, so that it changes with it."""
    storages = [x.untyped_storage()._cdata for x in inputs if isinstance(x, Tensor)]
    written = {inputs[place].untyped_storage()._cdata for place in places}
    return sum(storage in written for storage in storages) > len(places)


def check_passes(names: Sequence[str]) -> None:
    """Raise ValueError for a name that no pass has."""
    for name in names:
        if name not in PASSES:
            raise unknown("pass", name, PASSES)


def copy_of(module: fx.GraphModule) -> fx.GraphModule:
    """The same module with a graph of its own."""
    copied, graph = fx.Graph(), module.graph
    output = copied.graph_copy(graph, {})
    copied.output(output)
    for old in graph.nodes:
        if old.op == "output":
            next(iter(reversed(copied.nodes))).meta = dict(old.meta)
    return fx.GraphModule(module, copied)


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape)
