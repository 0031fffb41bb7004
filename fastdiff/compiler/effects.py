"""What calls do beside their result: which of their tensors they write to, and whether they draw random numbers.

PyTorch's schemas say it of each operator, but a function such as `F.silu(x, True)` calls one or another by its
arguments. So each kind of call is made once with tensors without memory, and the operators that it reaches are asked.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.compiler.nodes import Node, value
from fastdiff.compiler.written import STATEMENTS

_STATISTICS = {F.batch_norm: "training", F.instance_norm: "use_input_stats"}  # the argument that updates them


class Effects(NamedTuple):
    """writes: which of a node's input nodes, by place in `all_input_nodes`. must_run: it draws random numbers, or does
    what nobody knows."""

    writes: tuple[int, ...] = ()
    must_run: bool = False


def note(graph: fx.Graph) -> None:
    """Write the effects of each call into its `meta`, if they are not there."""
    known: dict[Any, Effects] = {}
    mode = FakeTensorMode()
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method") or "effects" in node.meta:
            continue
        inputs = [value(each) for each in node.all_input_nodes]
        if not any(isinstance(x, Tensor) for x in (*inputs, *pytree.tree_leaves(value(node)))):
            continue  # a size, or a setting of PyTorch's
        key = _key(node)
        if key not in known:
            known[key] = _tried(node, mode)
        node.meta["effects"] = known[key]


def of(node: Node) -> Effects:
    """What `note` found."""
    found = node.meta.get("effects", Effects())
    assert isinstance(found, Effects)
    return found


def written(node: Node) -> list[Node]:
    """The nodes whose tensors the call writes to."""
    inputs = node.all_input_nodes
    return [inputs[place] for place in of(node).writes]


def must_run(node: Node) -> bool:
    """Whether the call stays though nobody uses its result."""
    return bool(node.is_impure()) or of(node).must_run or bool(of(node).writes)


def _key(node: Node) -> Any:
    """Calls with the same key do the same: tensors count by dtype, numbers by whether they are 0."""
    order = {each: place for place, each in enumerate(node.all_input_nodes)}

    def word(x: Any) -> Any:
        if isinstance(x, fx.Node):
            fake = value(x)
            return ("node", order[x], fake.dtype if isinstance(fake, Tensor) else type(fake))
        if isinstance(x, (list, tuple)):
            return (type(x).__name__, *map(word, x))
        if isinstance(x, dict):
            return tuple((key, word(each)) for key, each in x.items())
        if isinstance(x, slice):
            return ("slice", word(x.start), word(x.stop), word(x.step))
        return (type(x).__name__, bool(x)) if isinstance(x, (int, float)) else (type(x).__name__, str(x))

    return node.op, node.target, word(node.args), word(node.kwargs)


def _tried(node: Node, mode: FakeTensorMode) -> Effects:
    inputs = node.all_input_nodes
    asked = _Asked()
    storages: dict[int, int] = {}
    try:
        with torch.no_grad(), mode:
            own = {each: pytree.tree_map(_without_values, value(each)) for each in inputs}
            for place, each in enumerate(inputs):
                storages.update((storage, place) for storage in _storages(own[each]))
            arguments = fx.map_arg(node.args, lambda each: own[each])
            options = fx.map_arg(node.kwargs, lambda each: own[each])
            with asked:
                if node.op == "call_method":
                    getattr(arguments[0], node.target)(*arguments[1:], **options)
                else:
                    node.target(*arguments, **options)
    except Exception:  # it wants values, or is no operator: nothing is known of it
        return Effects(_by_name(node), must_run=True)
    places = {storages[storage] for storage in asked.written if storage in storages}
    return Effects(tuple(sorted(places)), asked.random or _updates_statistics(node))


class _Asked(TorchDispatchMode):
    """Asks the schema of each operator that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.random = False
        self.written: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = func._schema.arguments
        given = {each.name: each.default_value for each in arguments} | dict(zip((a.name for a in arguments), args))
        given |= kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random |= given.get("dropout_p") != 0 and False not in (given.get("train"), given.get("training"))
        for each in arguments:
            if each.alias_info is not None and each.alias_info.is_write:
                self.written.update(_storages(given[each.name]))
        return func(*args, **kwargs or {})


def _without_values(x: Any) -> Any:
    """A tensor like x in a storage of its own. Symbols become the numbers that they had at the capture: asking about
    them would make them constants of the graph."""
    if isinstance(x, Tensor):
        shape, strides = map(_without_values, x.shape), map(_without_values, x.stride())
        return torch.empty_strided(tuple(shape), tuple(strides), dtype=x.dtype, device=x.device)
    return x.node.hint if isinstance(x, (torch.SymInt, torch.SymFloat, torch.SymBool)) else x


def _storages(x: Any) -> set[int]:
    return {each.untyped_storage()._cdata for each in pytree.tree_leaves(x) if isinstance(each, Tensor)}


def _updates_statistics(node: Node) -> bool:
    """Whether this is a norm that updates its running statistics: of that the schemas do not speak."""
    if node.target not in _STATISTICS:
        return False
    arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    arguments.apply_defaults()
    return arguments.arguments[_STATISTICS[node.target]] is not False


def _by_name(node: Node) -> tuple[int, ...]:
    """The first input, where the name says that it is written to."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.startswith("_")
    in_place = in_place or node.target in STATEMENTS or node.target in (operator.setitem, operator.delitem)
    return (0,) if in_place or node.kwargs.get("inplace") is True else ()
