"""Lower precision, where a user asks for it: which layers of a model may have it, and such a layer in a graph.

What was asked for is written on the weights before the passes: a node that stands for a parameter has it in its `meta`.
The pass "precision" replaces the layers of these weights.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastdiff.compiler.fused import by_rows
from fastdiff.errors import expect, one_of, unknown
from fastdiff.ops.linear import Arguments
from fastdiff.ops.linear_low import PRECISIONS, coarse, exactly, implementation, low_linear
from fastdiff.runtime import choice
from fastdiff.runtime.native import core

WORDS = ("float32", *PRECISIONS)
# In the meta of a weight's node:
_PRECISION, _LAYER, _KEPT, _COARSE = "precision", "layer", "keep_float32", "too coarse for int8"
_BY = {
    "tiles": "PyTorch's bfloat16 products on AMX",
    "instructions": {"bf16": "AVX-512's bfloat16 products", "int8": "AVX-512's 8-bit products (VNNI)"},
    "plain": "float32 products of the rounded numbers",
}


@dataclass(frozen=True)
class Precision:
    """What `fastdiff.optimize` was asked for. keep_float32: names of parts, with `*`, that stay as they are."""

    word: str
    keep_float32: tuple[str, ...] = ()


def wanted(modules: Sequence[nn.Module], word: str, keep_float32: tuple[str, ...]) -> Precision | None:
    """The precision for these models; None for float32. Raises ValueError where they or their device cannot have it."""
    one_of("precision", word, WORDS)
    if word == "float32":
        expect(not keep_float32, "keep_float32 names exceptions from a lower precision, and precision is 'float32'")
        return None
    expect(not choice.exact(), f"precision={word!r} rounds factors, which FASTDIFF_EXACT=1 rules out")
    for module in modules:
        _check(module, word)
    names = [name for module in modules for name, _ in module.named_modules() if name]
    for pattern in keep_float32:
        if not any(_within(name, pattern) for name in names):
            raise unknown("part of the model in keep_float32", pattern, names, "which model.named_modules() lists")
    if implementation(word) == "plain":
        warnings.warn(f"fastdiff: {_why_plain(word)}", stacklevel=3)
    return Precision(word, keep_float32)


def _check(module: nn.Module, word: str) -> None:
    for parameter in module.parameters():
        if not parameter.is_cpu:
            raise ValueError(
                f"precision={word!r} is for CPUs, and the model is on {parameter.device}; there half precision is the "
                "next best: model.to(torch.float16), then optimize without precision (fp8 is not there yet)"
            )
        if parameter.is_floating_point() and parameter.dtype is not torch.float32:
            raise ValueError(
                f"precision={word!r} is for float32 models, and this one has {parameter.dtype} weights; optimize it "
                "without precision, or model.float() first"
            )


def _why_plain(word: str) -> str:
    needs = "AVX-512 BF16 or AMX" if word == "bf16" else "AVX-512 VNNI"
    return (
        f"precision={word!r} has no instructions in {core.isa()} on this machine (it needs {needs}): the results are "
        "right and the weights small, but it takes longer than float32, which is the next best"
    )


def _within(name: str, pattern: str) -> bool:
    """Whether a part has this name, or is in a part that has."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def mark(
    graph: fx.Graph, inputs: Sequence[Any], model: weakref.ref[nn.Module] | None, precision: Precision | None
) -> None:
    """Write the precision on the nodes of the parameters. inputs: of the graph, in the order of its placeholders."""
    module = None if model is None else model()
    if precision is None or module is None:
        return
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, given in zip(placeholders, inputs):
        name = names.get(id(given))
        if name is None:
            continue
        layer = name.rpartition(".")[0] or name
        node.meta[_LAYER] = layer
        node.meta[_PRECISION] = precision.word
        node.meta[_KEPT] = any(_within(layer, pattern) for pattern in precision.keep_float32)
        of_a_layer = given.is_cpu and given.dim() == 2 and not node.meta[_KEPT]
        if precision.word == "int8" and of_a_layer and coarse(given):
            node.meta[_COARSE] = True
            node.meta[_PRECISION] = "bf16"


def of(weight: Any) -> str | None:
    """The precision that a weight's layer may have; None where that was not asked for."""
    return weight.meta.get(_PRECISION) if isinstance(weight, fx.Node) else None


def kept(weight: fx.Node) -> bool:
    """Whether the layer shall stay in float32."""
    return bool(weight.meta[_KEPT])


def too_coarse(weight: fx.Node) -> bool:
    """Whether int8 was asked for, and the weight has bfloat16 instead."""
    return bool(weight.meta.get(_COARSE))


def layer(weight: fx.Node) -> str:
    """The name of the layer that has the weight."""
    return str(weight.meta[_LAYER])


class LowLinear(nn.Module):
    """A linear layer of a graph in lower precision, with its epilogue. name: of the layer in the model."""

    def __init__(self, name: str, precision: str, activation: str, glu: bool) -> None:
        super().__init__()
        self.name, self.precision, self.activation, self.glu = name, precision, activation, glu

    def forward(self, x: Tensor, weight: Tensor, bias: Any, gate: Any, residual: Any) -> Tensor:
        return by_rows(
            Arguments(x, weight, bias, gate, residual, self.activation, self.glu),
            lambda a: low_linear(a, self.precision),
        )

    def exactly(self, x: Tensor, weight: Tensor, bias: Any, gate: Any, residual: Any) -> Tensor:
        """The same in float64."""
        return by_rows(Arguments(x, weight, bias, gate, residual, self.activation, self.glu), exactly)

    def extra_repr(self) -> str:
        return f"{self.name}, {self.precision}, activation={self.activation}, glu={self.glu}"


def layers(module: nn.Module) -> list[LowLinear]:
    """The layers of a graph that are in lower precision."""
    return [part for part in module.modules() if isinstance(part, LowLinear)]


def described(word: str) -> str:
    """Who multiplies, in words."""
    by = _BY[implementation(word)]
    return f"{word} by {by[word] if isinstance(by, dict) else by}"
