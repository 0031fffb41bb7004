"""Whether a fast model gives what the original gives, and if not, where in its graph the difference begins."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastdiff.compiler import lockstep
from fastdiff.compiler.capture import FastGraph
from fastdiff.compiler.nodes import Node
from fastdiff.compiler.report import recorded, reports_of
from fastdiff.errors import expect
from fastdiff.runtime import contents, eager

# Of the output's RMS, in float32; other dtypes may differ as many units in their last place.
_BOUND = 1e-4 / torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Difference:
    """Of two tensors, in units of the RMS of the expected one. bound: of maximum."""

    name: str
    maximum: float
    rms: float
    bound: float

    @property
    def within(self) -> bool:
        """Whether it is within its bound; NaN is not."""
        return self.maximum <= self.bound


@dataclass
class Verification:
    """What `verify` found.

    outputs: each of the model's results. nodes: how many were compared with the original's; first: the first one beyond
    its bound, if there is one. against: what the outputs were compared with, "float64" or the model's dtype. unproven:
    why nothing was verified: the original ran in the fast model's place; None if the fast one ran. stale: weights that
    were changed unseen: what is kept of them is old (`fastdiff.refresh`).
    """

    outputs: list[Difference]
    nodes: int = 0
    first: Difference | None = None
    against: str = ""
    unproven: str | None = None
    notes: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the fast model ran, all outputs are within their bounds and no weight is stale. A node beyond its own
        bound is reported, and may be made up for."""
        return self.unproven is None and all(output.within for output in self.outputs) and not self.stale

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.unproven is not None:
            return f"not verified: the original ran: {self.unproven}"
        lines = [f"{'same' if self.ok else 'DIFFERENT'}: the fast model against {self.against}, {self.nodes} nodes"]
        for found in self.outputs:
            sign = "<=" if found.within else "> "
            lines.append(f"  {found.name}: max {found.maximum:.1e} {sign} {found.bound:.1e}, RMS {found.rms:.1e}")
        if self.first is not None:
            lines.append(f"  first beyond its bound: {self.first.name}, max {self.first.maximum:.1e}")
        if self.stale:
            lines.append(f"  changed unseen, call fastdiff.refresh: {', '.join(self.stale)}")
        return "\n".join([*lines, *("  " + note for note in self.notes)])


def verify(model: nn.Module, fast: nn.Module, inputs: Any) -> Verification:
    """Run the original and the fast model, and compare their results and the nodes of their graphs.

    model: the original; may be the same object as `fast`, since `optimize` works in place. inputs: a tuple of the
    arguments, or a dictionary of named ones, or (tuple, dictionary). The differences are in units of the expected
    tensor's RMS; the bound is twice that of the original against the same in float64 where that fits into memory, plus
    1e-4 in float32 (as many roundings in other dtypes).

    Both run without gradients. Where the original runs in the fast one's place, the result says so and is not `ok`.
    Weights that were changed through `.data`, so that the fast model still works with the old ones, are named.

    Raises ValueError if `fast` is not a model that went through `fastdiff.optimize` or torch.compile.
    """
    args, kwargs = _arguments(inputs)
    original = model._call_impl
    expect(
        getattr(fast, "_compiled_call_impl", None) is not None or hasattr(fast, "_orig_mod"),
        "fast must come from fastdiff.optimize or torch.compile",
    )
    known = [(report, report.calls) for report in reports_of(list(fast.parameters()))]
    with torch.no_grad(), _observed() as grabbed, recorded() as made:
        found = _tensors(fast(*args, **kwargs))
    reports = [report for report, calls in known if report.calls > calls]
    reports += [report for report in made if report.calls]
    with torch.no_grad():
        expected = _tensors(original(*args, **kwargs))
        result = Verification([], against=_dtype(expected))
        wide = (
            len(grabbed) == 1
            and not any(r.fallback for r in reports)
            and _fits(sum(p.numel() for p in model.parameters()))
        )
        result.stale = _stale(fast, [w for graph, values in grabbed.values() for w in graph.stored.weights(values)])
        for graph, values in grabbed.values():
            _compare_nodes(graph, values, result)
        exact = None
        if wide:
            ((graph, values),) = grabbed.values()
            exact = _tensors(lockstep.in_float64(graph.original, values))
            result.against = "float64"
    expect(len(found) == len(expected), f"the fast model gives {len(found)} tensors, the original {len(expected)}")
    for number, (ours, theirs) in enumerate(zip(found, expected)):
        name = "output" if len(expected) == 1 else f"output {number}"
        result.outputs.append(_difference(name, ours, theirs, None if exact is None else exact[number]))
    reasons = [report.fallback for report in reports if report.fallback is not None]
    if not grabbed and (reasons or not hasattr(fast, "_orig_mod")):
        result.unproven = "; ".join(dict.fromkeys(reasons)) or eager.wanted() or "no graph of fastdiff was made"
    elif not grabbed:
        result.notes.append("no graph of fastdiff ran")
    result.notes += [f"a part ran as it was written: {reason}" for reason in reasons]
    return result


@contextmanager
def _observed() -> Iterator[dict[int, tuple[FastGraph, tuple[Any, ...]]]]:
    """The graphs that run inside the block, by their id, with the inputs of their first call."""
    grabbed: dict[int, tuple[FastGraph, tuple[Any, ...]]] = {}
    before = FastGraph.observer
    FastGraph.observer = lambda graph, values: grabbed.setdefault(id(graph), (graph, values))
    try:
        yield grabbed
    finally:
        FastGraph.observer = before


def verified_call(
    fast: Callable[..., Any], original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, bool | None]:
    """The fast result and True, or the original's and False with a warning that says by how much it differs, or None
    where the original ran in the fast one's place."""
    with _observed() as grabbed:
        found = fast(*args, **kwargs)
    if not grabbed:
        return found, None
    expected = original(*args, **kwargs)
    with torch.no_grad():
        differences = [
            _difference(f"output {n}", a, b, None)
            for n, (a, b) in enumerate(zip(_tensors(found), _tensors(expected), strict=True))
        ]
    wrong = [each for each in differences if not each.within]
    if not wrong:
        return found, True
    what = ", ".join(f"{each.name} differs by {each.maximum:.1e} of its RMS" for each in wrong)
    warnings.warn(f"fastdiff: {what}; the original runs from here on", stacklevel=3)
    return expected, False


def _stale(module: nn.Module, weights: list[Tensor]) -> list[str]:
    """Names of the weights that are not what something was made of."""
    changed = {id(weight): weight for weight in weights if contents.changed(weight)}
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return [names.get(key, f"a weight of {tuple(weight.shape)}") for key, weight in changed.items()]


def _compare_nodes(graph: FastGraph, inputs: tuple[Any, ...], result: Verification) -> None:
    def visit(node: Node, ours: Tensor, theirs: Tensor) -> None:
        result.nodes += 1
        if result.first is None and ours.numel() and ours.shape == theirs.shape:
            found = _difference(str(node.meta["origin"]), ours, theirs, None)
            result.first = None if found.within else found

    lockstep.compare(graph.original, graph.module, inputs, visit)


def _difference(name: str, ours: Tensor, theirs: Tensor, exact: Tensor | None) -> Difference:
    """exact: the expected tensor in float64, if it is known."""
    if not theirs.is_floating_point() or not theirs.numel():
        differ = float(ours.shape != theirs.shape or bool((ours != theirs).any()))
        return Difference(name, differ, differ, 0.0)
    expected = theirs.double() if exact is None else exact
    if ours.shape != expected.shape:
        return Difference(name, float("inf"), float("inf"), 0.0)
    unit = float(expected.square().mean().sqrt()) or 1.0
    error = (ours.double() - expected).abs()
    bound = _BOUND * torch.finfo(theirs.dtype).eps
    if exact is not None:
        bound = max(bound, 2 * float((theirs.double() - expected).abs().max()) / unit)
    return Difference(name, float(error.max()) / unit, float(error.square().mean().sqrt()) / unit, bound)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    if isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
        return inputs
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):  # outputs of diffusers and transformers are dictionaries
        result = list(result.values())
    return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]


def _fits(parameters: int) -> bool:
    """Whether the model fits into half the free memory in float64."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, AttributeError):  # not on this system
        return parameters < 100_000_000
    return 8 * parameters < free // 2


def _dtype(tensors: list[Tensor]) -> str:
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else "nothing"
