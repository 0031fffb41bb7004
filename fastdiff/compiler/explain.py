"""What became of a model: what each pass matched and what it left and why, which parts run as they were, and where the
time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from fastdiff.compiler.branches import without_reuse
from fastdiff.compiler.capture import FastGraph
from fastdiff.compiler.nodes import Node
from fastdiff.compiler.optimize import FastCall, reports_of_module
from fastdiff.compiler.report import Report, reports_of
from fastdiff.files import replacing
from fastdiff.runtime.memory import release

_UNKNOWN = "arguments that are no tensors, names of arguments, settings of PyTorch, or a change to the model"


@dataclass
class Explanation:
    """The reports of a model's graphs, what ended on the way, and seconds by kind of call where inputs were given.
    Prints as a table."""

    reports: list[Report]
    seconds: dict[str, tuple[int, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"the model {note}" for note in self.notes]
        if not self.reports:
            return "\n".join([*lines, "nothing was captured yet: call the model once"])
        for number, report in enumerate(self.reports):
            lines.append(f"graph {number}: {_title(report)}")
            same = [
                (k, _other(report, old)) for k, old in enumerate(self.reports[:number]) if old.shapes == report.shapes
            ]
            if same:
                k, what = min(same, key=lambda pair: len(pair[1]))  # the most alike
                lines.append(f"  beside graph {k}, of the same shapes: {'; '.join(what) or _UNKNOWN}")
            lines += _passes(report)
            if report.reuse is not None:
                lines.append(f"  {'reuse':<18} {report.reuse}")
            if report.graph is not None:
                lines += [f"  {name:<18} {line}" for name, line in report.graph.explain()]
            if report.part is not None:
                lines.append(f"  not the whole model: {report.part}")
        if self.seconds:
            total = sum(seconds for _, seconds in self.seconds.values())
            lines.append(f"time: {total * 1e3:.1f} ms, node by node")
            for name, (count, seconds) in self.seconds.items():
                lines.append(f"  {seconds * 1e3:9.2f} ms {seconds / total:6.1%} {count:5d} x {name}")
        return "\n".join(lines)

    def write_html(self, path: str | Path) -> Path:
        """Write the same as a page. Returns its path."""
        return write_html(str(self), path)


def write_html(text: str, path: str | Path) -> Path:
    """Write an explanation as a page. Returns its path."""
    page = f"<!doctype html><meta charset=utf-8><title>fastdiff explain</title><pre>{escape(text)}</pre>\n"
    with replacing(path) as temporary:
        temporary.write_text(page)
    return Path(path)


def explain(fast: nn.Module, inputs: tuple[Any, ...] | None = None, *, html: str | Path | None = None) -> Explanation:
    """What became of a model that went through `fastdiff.optimize` or torch.compile(backend="fastdiff").

    inputs: arguments of one more call, whose time is taken node by node, or (arguments, named arguments). html: a file
    to write the same to. Raises TypeError for what is not a module.
    """
    if not isinstance(fast, nn.Module):
        raise TypeError(f"explain() takes a torch.nn.Module, got {type(fast).__name__}")
    explanation = Explanation(reports_of_module(fast))
    if inputs is not None:
        explanation.seconds = _timed(fast, inputs)
        explanation.reports = reports_of_module(fast)
    if isinstance(call := fast._compiled_call_impl, FastCall):
        explanation.notes = call.notes
    if html is not None:
        explanation.write_html(html)
    return explanation


def is_fast(model: nn.Module) -> bool:
    """Whether a model runs through the backend."""
    return isinstance(model._compiled_call_impl, FastCall) or bool(reports_of([*model.parameters()]))


def _title(report: Report) -> str:
    shapes = " ".join("x".join(map(str, shape)) or "scalar" for shape in report.shapes)
    sizes = "any sizes" if report.dynamic else "these sizes"
    calls = f"{report.calls} call{'s' * (report.calls != 1)}"
    state = f"runs as it was written: {report.fallback}" if report.fallback else calls
    return f"captured with {shapes}, for {sizes}; {state}; passes took {report.seconds:.2f} s"


def _other(report: Report, before: Report) -> list[str]:
    """What differs from the report of a graph that was captured with the same shapes."""
    found = []
    if report.dtypes != before.dtypes:
        found.append(f"arguments of {_names(report.dtypes)}, not {_names(before.dtypes)}")
    if report.weights != before.weights:
        found.append(f"weights of {_names(report.weights)}, not {_names(before.weights)}")
    if report.parameters.keys() != before.parameters.keys():
        found.append("other parameters: weights were replaced, or adapters added or removed")
    if report.dynamic != before.dynamic:
        found.append("for any sizes" if report.dynamic else "for these sizes")
    return found


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " and ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes)) or "nothing"


def _passes(report: Report) -> list[str]:
    lines = []
    for notes in report.passes:
        lines.append(f"  {notes.name:<18} {notes.error or notes.matches}")
        lines += [f"  {'':<18} {remark}" for remark in notes.remarks]
        lines += [f"  {'':<18} left {count}: {reason}" for reason, count in notes.misses.most_common()]
    return lines


class _Timed(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def run_node(self, n: Node) -> Any:
        started = time.perf_counter()
        result = super().run_node(n)
        self.seconds[kind(self.module, n)].append(time.perf_counter() - started)
        return result


def kind(module: nn.Module, node: Node) -> str:
    """What a node does, in a word or two, for a table."""
    if node.op == "call_module":
        return type(module.get_submodule(node.target)).__name__.lower()
    return (
        node.op if node.op in ("placeholder", "output", "get_attr") else getattr(node.target, "__name__", node.target)
    )


def _timed(fast: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[int, float]]:
    args, kwargs = inputs if len(inputs) == 2 and isinstance(inputs[1], dict) else (inputs, {})
    grabbed: dict[int, tuple[FastGraph, tuple[Any, ...]]] = {}
    FastGraph.observer = lambda graph, values: grabbed.setdefault(id(graph), (graph, values))
    try:
        with torch.no_grad(), without_reuse():
            fast(*args, **kwargs)
    finally:
        FastGraph.observer = None
    total: dict[str, tuple[int, float]] = {}
    with torch.no_grad():
        for graph, values in grabbed.values():
            for timed in (_Timed(graph.module), run := _Timed(graph.module)):
                timed.run(*values)  # the first one warms up
            for name, seconds in run.seconds.items():
                count, before = total.get(name, (0, 0.0))
                total[name] = (count + len(seconds), before + sum(seconds))
    release()
    return dict(sorted(total.items(), key=lambda item: -item[1][1]))
