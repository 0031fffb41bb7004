"""Strides of tensors with a dimension of size 1, where those of the capture's fake tensors are not what PyTorch gives.

Where a view splits or joins dimensions, PyTorch gives a dimension of size 1 the stride that belongs to the dimension
beside it (`computeStride`), and a fake tensor the one that a contiguous tensor has. No element lies elsewhere, but a
convolution looks at that stride to choose its result's layout: with one picture the result is contiguous where the
fake tensor is channels-last. So what follows such a view is done once more with tensors without memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import no_python_dispatcher
from torch._prims_common import suggest_memory_format

from fastdiff.compiler.nodes import Node, value

_VIEWS = {"view", "reshape", "flatten", "unflatten"}
_CONVOLUTIONS = {"conv2d", "conv3d"}
_ARITHMETIC = {"add", "sub", "mul", "div", "truediv", "true_divide", "multiply", "divide"}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def real_strides(graph: fx.Graph) -> dict[Node, tuple[int, ...]]:
    """Of the nodes that have others than their fake tensors, at the sizes of the capture."""
    others: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        try:
            if not (any(each in others for each in node.all_input_nodes) or _splits_a_single(node)):
                continue
            found = _run(node, others)
            if isinstance(found, Tensor) and found.stride() == _concrete(value(node)).stride():
                continue
        except Exception:  # values are asked for, a size is not known: what follows is as its fake tensors are
            continue
        others[node] = found
    return {node: x.stride() for node, x in others.items() if isinstance(x, Tensor) and isinstance(value(node), Tensor)}


def with_strides(fake: Any, wanted: tuple[int, ...]) -> Any:
    """A fake tensor like this one with strides that are these at the sizes of the capture; itself if none are known."""
    if all(isinstance(size, int) for size in (*fake.shape, *fake.stride())):
        with fake.fake_mode:
            return torch.empty_strided(fake.shape, wanted, dtype=fake.dtype, device=fake.device)
    forms = [torch.contiguous_format, *([_LAST[fake.ndim]] if fake.ndim in _LAST else [])]
    with fake.fake_mode:
        made = [torch.empty(fake.shape, dtype=fake.dtype, device=fake.device, memory_format=form) for form in forms]
        ones = [
            other if isinstance(size, int) and size == 1 else stride
            for size, stride, other in zip(fake.shape, fake.stride(), wanted)
        ]
        made.append(torch.empty_strided(fake.shape, ones, dtype=fake.dtype, device=fake.device))
    for each in made:
        if _concrete(each).stride() == wanted:
            return each
    return fake


def _splits_a_single(node: Node) -> bool:
    """Whether it is a view of a tensor that has a dimension of size 1 and is not contiguous."""
    if str(getattr(node.target, "__name__", node.target)) not in _VIEWS or not node.args:
        return False
    fake = value(node.args[0])
    if not isinstance(fake, Tensor) or not isinstance(value(node), Tensor):
        return False
    is_single = any(isinstance(size, int) and size == 1 for size in fake.shape)
    return is_single and not _concrete(fake).is_contiguous()


def _run(node: Node, others: dict[Node, Any]) -> Any:
    def given(each: Node) -> Any:
        return others[each] if each in others else _concrete(value(each))

    args, named = fx.map_arg(node.args, given), fx.map_arg(node.kwargs, given)
    name = str(getattr(node.target, "__name__", node.target))
    if name in _ARITHMETIC:  # beside a tensor without memory a number counts as none, which gives other strides
        args = tuple(
            torch.empty((), dtype=value(node).dtype, device="meta") if isinstance(x, (int, float)) else x for x in args
        )
    with torch.no_grad(), no_python_dispatcher():  # with it, while Dynamo captures, strides are those of Python's rules
        if node.op == "call_method":
            return getattr(args[0], name)(*args[1:], **named)
        found = node.target(*args, **named)  # type: ignore[operator]
    if name in _CONVOLUTIONS:  # by the layouts of both, as on the CPU
        last = _LAST[found.ndim]
        is_last = any(suggest_memory_format(x) is last for x in args[:2])
        return torch.empty_like(found, memory_format=last if is_last else torch.contiguous_format)
    return found


def _concrete(found: Any) -> Any:
    """The same at the sizes of the capture, in tensors without memory."""
    if isinstance(found, (tuple, list)):
        return type(found)(map(_concrete, found))
    if isinstance(found, torch.SymInt):
        return found.node.hint
    if not isinstance(found, Tensor):
        return found
    shape, strides = map(_concrete, (tuple(found.shape), found.stride()))
    return torch.empty_strided(shape, strides, dtype=found.dtype, device="meta")
