"""A captured graph that takes its deep part from an earlier call of the same run: off unless asked for.

Which calls do so, `fastdiff.runtime.reuse.Caching` says; where the graph is cut, `cuts`; which calls belong to one run,
`branches`. A rule by numbers of calls needs no values. A threshold reads one number, for which a GPU is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastdiff.compiler.branches import Branches
from fastdiff.compiler.capture import FastGraph, Told, copy_of, transform
from fastdiff.compiler.cuts import Cut, NoCut, find_cut
from fastdiff.compiler.report import Report
from fastdiff.compiler.stages import Stage, Stages, split
from fastdiff.runtime.reuse import Caching, change


class Kept:
    """What one graph keeps in one branch."""

    def __init__(self, rule: Caching) -> None:
        self.rule = rule
        self._watched: Tensor | None = None
        self._weights: Any = None
        self._deep: Tensor | None = None
        self._number = self._age = 0
        self._changed = 0.0  # since the last full call, in sum

    def find(self, watched: Tensor, weights: Any) -> Tensor | None:
        """The deep result for this call, which is counted; None if it is a full one."""
        number, self._number = self._number, self._number + 1
        reusing = self._deep is not None and weights == self._weights
        if self.rule.threshold is None:
            reusing = reusing and self.rule.counted(number, self._age)
        else:
            reusing = self._is_close(watched, self.rule.threshold) and reusing
        if reusing:
            self._age += 1
            return self._deep
        self._age, self._changed, self._deep = 1, 0.0, None  # should the call fail
        self._weights = weights
        if self.rule.threshold is not None:
            self._watched = watched
        return None

    def keep(self, deep: Tensor) -> None:
        """What this call, a full one, gave."""
        self._deep = deep

    def _is_close(self, watched: Tensor, threshold: float) -> bool:
        before = self._watched
        if before is None:
            return False
        if self.rule.depth:
            return float(change(watched, before)) < threshold
        self._watched = watched  # from call to call, in L1
        self._changed += float((watched - before).float().abs().mean() / before.float().abs().mean())
        return self._changed < threshold


class ReusedGraph:
    """A captured graph in three parts, of which the deep one does not run in each call; called with its inputs."""

    def __init__(
        self,
        stages: Stages,
        cut: Cut,
        branches: Branches,
        report: Report,
        make: Callable[[Stage], FastGraph],
        *,
        waits: bool,
    ) -> None:
        self.report, self._stages, self._branches, self._waits = report, stages, branches, waits
        self._what = f"{cut.what}, {cut.share:.0%} of the multiplications"
        self.outer, self.deep, self.rest = (make(stage) for stage in (stages.outer, stages.deep, stages.rest))
        self.full = self.reused = 0

    def __call__(self, *inputs: Any) -> Any:
        self.report.calls += 1
        stages, branch = self._stages, self._branches.current
        values = [*inputs]
        values += self.outer(*_of(values, stages.outer))
        start = None if stages.start is None else values[stages.start]
        kept: Kept | None = None
        found: Tensor | None = None
        if branch is not None and self._branches.recorder is None:
            kept = branch.kept.setdefault(self, Kept(self._branches.rule))
            found = kept.find(values[stages.watched], self._weights(inputs))
        if found is None:
            (deep,) = self.deep(*_of(values, stages.deep))
            result = deep if start is None or branch is None else deep - start
            if kept is not None:
                kept.keep(result)
                self.full += 1
            elif branch is not None:
                self._branches.recorder.add(branch, result)
        else:
            deep = found if start is None else start + found
            self.reused += 1
            self._branches.reused += 1
        values.append(deep)
        return self.rest(*_of(values, stages.rest))

    def _weights(self, inputs: tuple[Any, ...]) -> list[tuple[int, int]]:
        """Which weights the deep result is made of: where they lie, and how often they were changed."""
        found = (inputs[place] for place in self._stages.weights)
        return [(x.data_ptr(), -1 if x.is_inference() else x._version) for x in found]

    def explain(self) -> list[tuple[str, str]]:
        """For `fastdiff.explain`."""
        rule, name = self._branches.rule, "reuse"
        calls = f"{self.full} full calls, {self.reused} that reuse"
        lines = [(name, f"{rule}: {self._what}; {calls}")]
        if rule.threshold is not None and self._waits:
            lines.append((name, "a threshold waits for the GPU in each call"))
        lines += [(name, note) for note in self._branches.notes]
        if self._branches.dropped:
            lines.append((name, f"{self._branches.dropped} times nothing was reused, as conditions were others in "
                                "nearly every call"))  # fmt: skip
        parts = (("the outer part", self.outer), ("the deep part", self.deep), ("the rest", self.rest))
        return lines + [(key, f"{part}: {line}") for part, graph in parts for key, line in graph.explain()]

    def refresh(self) -> None:
        """Keep nothing of the calls until now."""
        for graph in (self.outer, self.deep, self.rest):
            graph.refresh()
        self._branches.forget()


def _of(values: list[Any], stage: Stage) -> list[Any]:
    return [values[place] for place in stage.inputs]


def with_reuse(branches: Branches, told: Told) -> Callable[..., ReusedGraph | None]:
    """What `compile_graph` takes as `cut`."""

    def cut(
        prepared: fx.GraphModule, report: Report, disable: Sequence[str], device: torch.device | None, moved: str | None
    ) -> ReusedGraph | None:
        try:
            place = find_cut(prepared.graph, branches.rule)
            stages = split(prepared, place)
        except NoCut as error:
            report.reuse = f'"{branches.rule}" is not in force: {error}'
            told(f"reuse {report.reuse}", "computes all in each call")
            return None

        def make(stage: Stage) -> FastGraph:
            own = Report((), dynamic=report.dynamic)
            fast = FastGraph(stage.module, transform(copy_of(stage.module), own, disable), own, device, moved)
            report.add(own.passes)
            return fast

        return ReusedGraph(stages, place, branches, report, make, waits=device is not None)

    return cut
