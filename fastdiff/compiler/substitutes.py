"""Functions of other libraries that Dynamo cannot trace, and what it traces in their place. They give the same.

peft's `dequantize_module_weight`, which DoRA calls in every layer, asks for the module of a weight's class, where a
capture ends. Of a weight that is not quantized it gives the weight.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

_known: set[int] = set()


def register() -> None:
    """Tell Dynamo of those whose library is imported; asked before every call of a captured model."""
    peft = sys.modules.get("peft.utils.integrations")
    if peft is None or id(peft) in _known:
        return
    _known.add(id(peft))
    original = getattr(peft, "dequantize_module_weight", None)
    substitute = getattr(torch.compiler, "substitute_in_graph", None)  # not in all versions of PyTorch
    if isinstance(original, types.FunctionType) and substitute is not None:
        substitute(original, skip_signature_check=True)(_weight_as_it_is(original))


def _weight_as_it_is(original: types.FunctionType) -> Any:
    # Dynamo would substitute the original itself once more.
    same = types.FunctionType(original.__code__, original.__globals__, original.__name__, original.__defaults__)

    def weight(module: torch.nn.Module) -> Any:
        found = getattr(module, "weight", None)
        quantized = hasattr(module, "W_q") or type(found) not in (torch.nn.Parameter, torch.Tensor)
        return same(module) if quantized else found

    return weight
