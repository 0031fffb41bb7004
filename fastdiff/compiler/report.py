"""What happened to each captured graph: what the passes matched, what they did not and why, and what went wrong."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastdiff.compiler.nodes import Node


@dataclass
class Notes:
    """What one pass says of itself. matches: calls made. misses: what looked alike, and why it was left. error: why the
    whole pass was undone. remarks: what else there is to know. seconds: it took."""

    name: str
    matches: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    error: str | None = None
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def matched(self, node: Node) -> None:
        """The pass put this node into the graph."""
        self.matches += 1
        node.meta["pass"] = self.name

    def missed(self, node: Node, reason: str) -> None:
        """The pass looked at the node and left it."""
        self.misses[reason] += 1


@dataclass
class Report:
    """One captured graph. fallback: why it runs as it was written, if it does. seconds: for capture's part in fastdiff.
    shapes, dtypes: of the tensors it was captured with; weights: dtypes of the parameters. part: why it is not the
    whole model, if it is not. reuse: why nothing is reused between its calls, if that was asked for."""

    shapes: tuple[tuple[Any, ...], ...]
    passes: list[Notes] = field(default_factory=list)
    fallback: str | None = None
    part: str | None = None
    reuse: str | None = None
    seconds: float = 0.0
    dynamic: bool = False
    dtypes: tuple[Any, ...] = ()
    weights: tuple[Any, ...] = ()
    # By the parameters' ids, to find the reports of a model: what must be alive, which is the model if it is known, or
    # the parameter, of which a weak reference keeps torch.utils.swap_tensors from exchanging it.
    parameters: dict[int, weakref.ref[Any]] = field(default_factory=dict)
    model: weakref.ref[Any] | None = None
    calls: int = 0
    _graph: weakref.ref[Any] | None = None

    @property
    def graph(self) -> Any:
        """The FastGraph, if the passes made one and it is still there."""
        return None if self._graph is None else self._graph()

    @graph.setter
    def graph(self, graph: Any) -> None:
        self._graph = weakref.ref(graph)

    def add(self, passes: list[Notes]) -> None:
        """What the passes say of a part of the graph."""
        known = {notes.name: notes for notes in self.passes}
        for notes in passes:
            if notes.name not in known:
                self.passes.append(notes)
                continue
            known[notes.name].matches += notes.matches
            known[notes.name].misses += notes.misses
            known[notes.name].seconds += notes.seconds
            known[notes.name].error = known[notes.name].error or notes.error

    def parameter(self, tensor: Any) -> None:
        """Note that the graph uses a parameter."""
        self.parameters[id(tensor)] = self.model or weakref.ref(tensor)

    def uses(self, tensors: list[Any]) -> bool:
        """Whether it uses one of these."""
        found = (self.parameters.get(id(tensor)) for tensor in tensors)
        return any(reference is not None and reference() is not None for reference in found)


_reports: list[Report] = []
_collectors: list[list[Report]] = []


@contextmanager
def recorded() -> Iterator[list[Report]]:
    """The reports that are made inside the block."""
    made: list[Report] = []
    _collectors.append(made)
    try:
        yield made
    finally:
        _collectors.remove(made)


def record(report: Report) -> None:
    """Keep a report until its model is gone."""
    for made in _collectors:
        made.append(report)
    _reports[:] = [old for old in _reports if any(parameter() is not None for parameter in old.parameters.values())]
    _reports.append(report)


def reports_of(parameters: list[Any]) -> list[Report]:
    """The reports of the graphs that use one of these parameters, oldest first."""
    return [report for report in _reports if report.uses(parameters)]


def discard(parameters: list[Any]) -> None:
    """Forget the reports of the graphs that use one of these parameters."""
    _reports[:] = [report for report in _reports if not report.uses(parameters)]
