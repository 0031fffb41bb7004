"""Linear layers in bfloat16 or 8-bit integers, where `optimize(model, precision=...)` asks for it. The first and the
last layers stay in float32, as do small ones."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fastdiff.compiler import precision
from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.fused import attention, linear
from fastdiff.compiler.nodes import Node, dtype, find, is_weight, same_dtype, shape, state, value
from fastdiff.compiler.report import Notes
from fastdiff.ops.linear import Arguments
from fastdiff.ops.linear_low import MOST_INPUTS, implementation, nbytes

NAME = "precision"
_LEAST = 32  # inputs and outputs: with fewer a layer takes no time worth sparing


def apply(graph: fx.Graph, notes: Notes) -> None:
    """Replace what is found."""
    if not any(precision.of(node) for node in graph.nodes):
        return
    first, last = _ends(graph)
    words = set()
    coarse = []  # names of layers
    low = whole = 0  # bytes of the weights
    for node in find(graph, linear, F.linear):
        a: Any = Arguments(*node.args)  # nodes
        word = precision.of(a.weight)
        if word is None:
            notes.missed(node, "the weight is no parameter of the model, so that nothing made of it can be kept")
        elif (reason := _left(node, a, first, last)) is not None:
            notes.missed(node, reason)
        else:
            words.add(word)
            if precision.too_coarse(a.weight):
                coarse.append(precision.layer(a.weight))
            low, whole = low + nbytes(shape(a.weight), word, a.glu), whole + 4 * math.prod(shape(a.weight))
            layer = precision.LowLinear(precision.layer(a.weight), word, a.activation, a.glu)
            notes.matched(state(node, layer, a.x, a.weight, a.bias, a.gate, a.residual))
    notes.remarks += [f"{precision.described(word)}, sums and all else in float32" for word in sorted(words)]
    if coarse:
        notes.remarks.append(f"in bf16, as int8 is too coarse for the weight: {', '.join(coarse)}")
    if words:
        notes.remarks.append(f"weights of {low / 1e6:.2f} MB, made of {whole / 1e6:.2f} MB")


def _left(node: Node, a: Any, first: set[Node], last: set[Node]) -> str | None:
    """Why a layer stays in float32, or None."""
    if precision.kept(a.weight):
        return "keep_float32 names the layer"
    if precision.too_coarse(a.weight) and implementation("bf16") == "plain":
        return "int8 is too coarse for the weight, and there are no instructions for bfloat16"
    if a.weight_2 is not None or not is_weight(a.weight):
        return "several weights in one product"
    if not value(a.x).is_cpu:
        return f"it is on {value(a.x).device}, and lower precision is for CPUs"
    if dtype(a.x) is not torch.float32 or not same_dtype(a.x, a.weight, a.bias):
        return "it is not float32"
    if node in first:
        return "one of the first layers"
    if node in last:
        return "one of the last layers"
    outputs, inputs = shape(a.weight)
    if min(outputs, inputs) < _LEAST:
        return f"fewer than {_LEAST} inputs or outputs"
    return f"more than {MOST_INPUTS} inputs" if inputs > MOST_INPUTS else None


def _ends(graph: fx.Graph) -> tuple[set[Node], set[Node]]:
    """The layers that no layer is before, and those that none is after."""
    nodes = list(graph.nodes)
    layers = {node for node in nodes if _is_layer(graph, node)}
    before: set[Node] = set()  # what depends on a layer
    after: set[Node] = set()  # what a layer depends on
    for node in nodes:
        if any(each in before or each in layers for each in node.all_input_nodes):
            before.add(node)
    for node in reversed(nodes):
        if any(user in after or user in layers for user in node.users):
            after.add(node)
    return layers - before, layers - after


def _is_layer(graph: fx.Graph, node: Node) -> bool:
    if node.op == "call_module":
        assert graph.owning_module is not None
        return isinstance(graph.owning_module.get_submodule(str(node.target)), Conv2d)
    return node.op == "call_function" and node.target in (linear, F.linear, torch.conv2d, attention)
