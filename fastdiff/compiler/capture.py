"""From a graph that Dynamo captured to the function that runs in its place."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.fused import restore_strides
from fastdiff.compiler.nodes import Node, value
from fastdiff.compiler.passes import PASSES, normalize
from fastdiff.compiler.report import Notes, Report, record
from fastdiff.errors import unknown


class FastGraph:
    """A captured graph after the passes. original: as it was captured. Called with the graph's inputs.

    observer: called with the graph and its inputs before every call, while `verify` and `explain` look.
    """

    observer: ClassVar[Callable[[FastGraph, tuple[Any, ...]], object] | None] = None

    def __init__(self, original: fx.GraphModule, module: fx.GraphModule, report: Report) -> None:
        self.original, self.module, self.report = original, module, report
        self._run = module.forward

    def __call__(self, *inputs: Any) -> Any:
        self.report.calls += 1
        if FastGraph.observer is not None:
            FastGraph.observer(self, inputs)
        return self._run(*inputs)


def compile_graph(
    captured: fx.GraphModule, inputs: Sequence[Any], *, disable: Sequence[str] = ()
) -> Callable[..., Any]:
    """What Dynamo calls: the graph with the passes applied, but for those named in `disable`.

    Where a gradient is wanted, or a pass finds something that it must not touch, the graph runs as it was captured; a
    pass that fails is undone. Both are in the report that `fastdiff.explain` shows, the latter with a warning too.
    """
    check_passes(disable)
    started = time.perf_counter()
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    report = Report(tuple(_shape(x) for x in inputs if isinstance(x, Tensor) and not _is_parameter(x)))
    report.dynamic = any(isinstance(x, torch.SymInt) for x in inputs)
    for tensor in tensors:
        if _is_parameter(tensor):
            report.parameter(tensor)
    record(report)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        report.fallback = "a gradient is wanted; torch.no_grad() or torch.inference_mode() for speed"
        return captured.forward
    try:
        module = transform(captured, report, disable)
    except Unsupported as error:
        report.fallback = str(error)
        return captured.forward
    finally:
        report.seconds = time.perf_counter() - started
    fast = FastGraph(captured, module, report)
    report.graph = fast
    return fast


def transform(captured: fx.GraphModule, report: Report, disable: Sequence[str] = ()) -> fx.GraphModule:
    """A copy of the captured graph after the passes."""
    module = _copy(captured, captured.graph)
    for node in module.graph.nodes:
        node.meta["origin"] = node.name
    normalize.apply(module.graph)
    for name, apply in PASSES.items():
        notes = Notes(name)
        report.passes.append(notes)
        if name in disable:
            notes.error = "turned off"
            continue
        before = _copy(module, module.graph)
        started = time.perf_counter()
        try:
            apply(module.graph, notes)
            module.graph.eliminate_dead_code()
            module.graph.lint()
        except Exception as error:
            module = before
            notes.matches, notes.error = 0, f"{type(error).__name__}: {error}"
            warnings.warn(f"fastdiff: the pass {name!r} failed and was undone: {notes.error}", stacklevel=2)
        notes.seconds = time.perf_counter() - started
    _restore_outputs(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def check_passes(names: Sequence[str]) -> None:
    """Raise ValueError for a name that no pass has."""
    for name in names:
        if name not in PASSES:
            raise unknown("pass", name, PASSES)


def _copy(module: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """The same module with a graph of its own."""
    copied = fx.Graph()
    output = copied.graph_copy(graph, {})
    copied.output(output)
    for old in graph.nodes:
        if old.op == "output":
            next(iter(reversed(copied.nodes))).meta = dict(old.meta)
    return fx.GraphModule(module, copied)


def _restore_outputs(graph: fx.Graph) -> None:
    """Give each result the strides that the original gives it, where those are of one of the usual layouts."""
    (output,) = (node for node in graph.nodes if node.op == "output")

    def restored(node: Node) -> Node:
        fake = value(node)
        if node.op in ("placeholder", "get_attr") or not isinstance(fake, Tensor) or fake.is_sparse:
            return node
        wide = fake.ndim == 4 and fake.is_contiguous(memory_format=torch.channels_last)
        if not wide and not fake.is_contiguous():
            return node
        with graph.inserting_before(output):
            new = graph.call_function(restore_strides, (node, wide and not fake.is_contiguous()))
        new.meta = dict(node.meta)
        return new

    output.args = fx.map_arg(output.args, restored)


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape)
