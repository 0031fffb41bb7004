"""Whether a fast model gives what the original gives, and if not, where in its graph the difference begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastdiff.compiler import lockstep, low_errors
from fastdiff.compiler.branches import without_reuse
from fastdiff.compiler.capture import FastGraph
from fastdiff.compiler.differences import HALVES, Difference, difference, node_difference
from fastdiff.compiler.low_errors import LayerError
from fastdiff.compiler.nodes import Node
from fastdiff.compiler.report import recorded, reports_of
from fastdiff.compiler.wider import whole, wider, without_tf32
from fastdiff.errors import expect
from fastdiff.runtime import contents, eager

Grabbed = dict[int, tuple[FastGraph, tuple[Any, ...]]]  # graphs with their inputs, by id
_LAYERS = 5  # that are printed


@dataclass
class Verification:
    """What `verify` found.

    outputs: each of the model's results. nodes: how many were compared with the original's; first: the first one beyond
    its bound, if there is one. against: what the outputs were compared with, "float64", "float32" or the model's dtype.
    unproven: why nothing was verified: the original ran in the fast model's place, or there was no wider type to judge
    half precision by; None otherwise. stale: weights that
    were changed unseen: what is kept of them is old (`fastdiff.refresh`). layers: those in lower precision, the largest
    error first.
    """

    outputs: list[Difference]
    nodes: int = 0
    first: Difference | None = None
    against: str = ""
    unproven: str | None = None
    notes: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the fast model ran, all outputs are within their bounds and no weight is stale. A node beyond its own
        bound is reported, and may be made up for."""
        return self.unproven is None and all(output.within for output in self.outputs) and not self.stale

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.unproven is not None:
            return f"not verified: {self.unproven}"
        nodes = f"{self.nodes} node{'s' * (self.nodes != 1)}"
        if self.layers:
            nodes = f"{len(self.layers)} layers in {' and '.join(sorted({layer.precision for layer in self.layers}))}"
        lines = [f"{'same' if self.ok else 'DIFFERENT'}: the fast model against {self.against}, {nodes}"]
        lines += [f"  {found}" for found in self.outputs]
        if self.first is not None:
            lines.append(f"  first beyond its bound: {self.first.name}, max {self.first.maximum:.1e}")
        if self.layers:
            lines.append("  errors of a layer, RMS by that of its own result, the largest first:")
            lines += [f"    {layer.rms:.1e} {layer.name}" for layer in self.layers[:_LAYERS]]
        if self.stale:
            lines.append(f"  changed unseen, call fastdiff.refresh: {', '.join(self.stale)}")
        return "\n".join([*lines, *("  " + note for note in self.notes)])


def verify(model: nn.Module, fast: nn.Module, inputs: Any) -> Verification:
    """Run the original and the fast model, and compare their results and the nodes of their graphs.

    model: the original; may be the same object as `fast`, since `optimize` works in place. inputs: a tuple of the
    arguments, or a dictionary of named ones, or (tuple, dictionary). The differences are in units of the expected
    tensor's RMS. In float32 the bound is 1e-4, or twice that of the original against the same in float64 where that
    fits into memory. In float16 and bfloat16 both are compared with the same in float64, or in float32 where that does
    not fit: the RMS of the fast model's error is at most 1.25 times the original's in the same type, its maximum twice,
    each plus one rounding of the result. On a GPU nothing is rounded to TF32 meanwhile; the notes say so where
    PyTorch's settings allow it. With a lower precision (`optimize(model, precision=...)`) the results are compared with
    the original's in float32, and may be off by as much as the original under torch.autocast to bfloat16, 1.25 times in
    the RMS and twice at most, plus a rounding; in int8 by 16 times that. The layers are ranked by their errors.

    Both run without gradients. Where the original runs in the fast one's place, the result says so and is not `ok`.
    Weights that were changed through `.data`, so that the fast model still works with the old ones, are named. Nothing
    is reused from other calls, whatever `optimize(reuse=)` was given, and the notes say so.

    Raises ValueError if `fast` is not a model that went through `fastdiff.optimize` or torch.compile, TypeError if one
    of them is no torch.nn.Module.
    """
    for given in (model, fast):
        if not isinstance(given, nn.Module):
            raise TypeError(f"verify() compares two of torch.nn.Module, got {type(given).__name__}")
    args, kwargs = _arguments(inputs)
    place = next((tensor.device for tensor in (*model.parameters(), *_tensors((args, kwargs)))), torch.device("cpu"))
    with without_tf32(place) as note:
        result = _verified(model, fast, args, kwargs, place)
    result.notes += [note] if note else []
    return result


def _verified(
    model: nn.Module, fast: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: torch.device
) -> Verification:
    original = model._call_impl
    expect(
        getattr(fast, "_compiled_call_impl", None) is not None or hasattr(fast, "_orig_mod"),
        "fast must come from fastdiff.optimize or torch.compile",
    )
    known = [(report, report.calls) for report in reports_of(list(fast.parameters()))]
    with torch.no_grad(), without_reuse(), _observed() as grabbed, recorded() as made:
        found = _tensors(fast(*args, **kwargs))
    reports = [report for report, calls in known if report.calls > calls]
    reports += [report for report in made if report.calls]

    def run() -> list[Tensor]:
        return _tensors(original(*args, **kwargs))

    with torch.no_grad():
        expected = run()
        result = Verification([], against=_dtype(expected))
        single = len(grabbed) == 1 and not any(r.fallback for r in reports)
        halves = any(tensor.dtype in HALVES for tensor in expected)
        wide = wider(sum(p.numel() for p in model.parameters()), place)
        if not halves and (wide is not torch.float64 or not single):
            wide = None
        result.stale = _stale(fast, [w for graph, values in grabbed.values() for w in graph.stored.weights(values)])
        word = low_errors.precision(graph for graph, _ in grabbed.values())
        if word is not None:
            return _in_lower_precision(result, found, expected, grabbed, word, run)
        for graph, values in grabbed.values():
            _compare_nodes(graph, values, result, wide if halves else None)
        exact = None
        if wide is not None and single:
            ((graph, values),) = grabbed.values()
            exact = _tensors(lockstep.in_wider(graph.original, values, wide))
        elif wide is not None and (grabbed or hasattr(fast, "_orig_mod")):  # in parts: the model, which may refuse
            try:
                exact = _tensors(whole(model, args, kwargs, wide))
            except (RuntimeError, TypeError, ValueError) as error:
                result.unproven = f"the original does not run in {wide}: {str(error).splitlines()[0]}"
        elif halves and wide is None:
            result.unproven = "there is too little memory for the original in float32"
        if exact is not None:
            result.against = str(wide).removeprefix("torch.")
    expect(len(found) == len(expected), f"the fast model gives {len(found)} tensors, the original {len(expected)}")
    for number, (ours, theirs) in enumerate(zip(found, expected)):
        name = "output" if len(expected) == 1 else f"output {number}"
        result.outputs.append(difference(name, ours, theirs, None if exact is None else exact[number]))
    reasons = [report.fallback for report in reports if report.fallback is not None]
    if not grabbed and (reasons or not hasattr(fast, "_orig_mod")):
        why = "; ".join(dict.fromkeys(reasons)) or eager.wanted() or "no graph of fastdiff was made"
        result.unproven = f"the original ran: {why}"
    elif not grabbed:
        result.notes.append("no graph of fastdiff ran")
    result.notes += [f"a part ran as it was written: {reason}" for reason in reasons]
    if any(hasattr(report.graph, "reused") for report in reports):
        result.notes.append("reuse across steps was off: all of the model was computed")
    return result


def _in_lower_precision(
    result: Verification,
    found: list[Tensor],
    expected: list[Tensor],
    grabbed: Grabbed,
    word: str,
    again: Callable[[], list[Tensor]],
) -> Verification:
    """again: runs the original."""
    result.layers = low_errors.ranked(grabbed.values())
    try:
        result.outputs = low_errors.differences(found, expected, again, word)
    except (RuntimeError, TypeError) as error:
        result.unproven = f"the original does not run under autocast to bfloat16: {str(error).splitlines()[0]}"
    return result


@contextmanager
def _observed() -> Iterator[Grabbed]:
    """The graphs that run inside the block, by their id, with the inputs of their first call."""
    grabbed: Grabbed = {}
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
    with _observed() as grabbed:  # of a run's first call, which reuses nothing
        found = fast(*args, **kwargs)
    if not grabbed:
        return found, None
    expected = original(*args, **kwargs)
    ours, theirs = _tensors(found), _tensors(expected)
    with torch.no_grad():
        exact: list[Any] = [None] * len(theirs)
        word = low_errors.precision(graph for graph, _ in grabbed.values())
        if word is not None:
            differences = low_errors.differences(ours, theirs, lambda: _tensors(original(*args, **kwargs)), word)
            return _judged(found, expected, differences)
        if len(grabbed) == 1 and any(tensor.dtype in HALVES for tensor in theirs):
            ((graph, values),) = grabbed.values()
            exact = _tensors(lockstep.in_wider(graph.original, values, torch.float32))
        differences = [
            difference(f"output {n}", a, b, c) for n, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True))
        ]
    return _judged(found, expected, differences)


def _judged(found: Any, expected: Any, differences: list[Difference]) -> tuple[Any, bool]:
    wrong = [each for each in differences if not each.within]
    if not wrong:
        return found, True
    what = ", ".join(f"{each.name} differs by {each.maximum:.1e} of its RMS" for each in wrong)
    warnings.warn(f"fastdiff: {what}; the original runs from here on", stacklevel=4)
    return expected, False


def _stale(module: nn.Module, weights: list[Tensor]) -> list[str]:
    """Names of the weights that are not what something was made of."""
    changed = {id(weight): weight for weight in weights if contents.changed(weight)}
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return [names.get(key, f"a weight of {tuple(weight.shape)}") for key, weight in changed.items()]


def _compare_nodes(graph: FastGraph, inputs: tuple[Any, ...], result: Verification, wide: torch.dtype | None) -> None:
    def visit(node: Node, ours: Tensor, theirs: Tensor, exact: Tensor | None) -> None:
        result.nodes += 1
        if result.first is None and ours.numel() and ours.shape == theirs.shape:
            found = node_difference(str(node.meta["origin"]), ours, theirs, exact)
            result.first = None if found.within else found

    lockstep.compare(graph.original, graph.module, inputs, visit, wide)


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


def _dtype(tensors: list[Tensor]) -> str:
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else "nothing"
