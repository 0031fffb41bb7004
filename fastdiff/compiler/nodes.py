"""What passes ask of a graph's nodes, and how they change it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

# An fx.Node. Its arguments have too many types to be told apart by a checker.
Node = Any
CROSSING = "crossing"  # in the meta of an input that another graph of the same model makes, with strides of its own


def value(node: Any) -> Any:
    """The fake tensor, number or list that the node stood for when the graph was captured; other things as they are."""
    return node.meta.get("example_value") if isinstance(node, fx.Node) else node


def device_of(graph: fx.Graph) -> torch.device:
    """Where the graph's tensors are: on a GPU, if one of its inputs is."""
    devices = [fake.device for fake in map(value, graph.nodes) if isinstance(fake, Tensor)]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def on_gpu(graph: fx.Graph) -> bool:
    """Whether the graph runs on a GPU, by kernels in Triton or PyTorch's."""
    return device_of(graph).type == "cuda"


def is_weight(node: Any) -> bool:
    """Whether a node is a parameter or buffer of the model; Dynamo's names say so."""
    if not isinstance(node, fx.Node) or node.op != "placeholder":
        return False
    name = str(node.target)
    return "_parameters_" in name or "_buffers_" in name or isinstance(value(node), nn.Parameter)


def shape(node: Any) -> Any:
    """The shape of a node that is a tensor, else None."""
    found = value(node)
    return tuple(found.shape) if isinstance(found, Tensor) else None


def rank(node: Any) -> int:
    """The number of a tensor's dimensions; -1 where the node is no tensor."""
    found = shape(node)
    return -1 if found is None else len(found)


def same(a: Any, b: Any) -> bool:
    """Whether two sizes, or shapes, are known to be equal, whatever the sizes of the next call."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        return a is not None and b is not None and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy

    return statically_known_true(a == b)


def dtype(node: Any) -> torch.dtype | None:
    """The dtype of a node that is a tensor, else None."""
    found = value(node)
    return found.dtype if isinstance(found, Tensor) else None


def same_dtype(x: Any, *others: Any) -> bool:
    """Whether the others that are there have x's dtype."""
    return all(dtype(other) is dtype(x) for other in others if other is not None)


def calls(node: Any, *functions: Callable[..., Any]) -> bool:
    """Whether the node calls one of these functions."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in functions


def find(graph: fx.Graph, *functions: Callable[..., Any]) -> Iterator[Node]:
    """The nodes that call one of these functions, in order; the graph may be changed meanwhile."""
    for node in list(graph.nodes):
        if calls(node, *functions) and node.users:
            yield node


def only_user(node: Node) -> Any:
    """The node that alone uses this one, once; or None."""
    users = list(node.users)
    if len(users) != 1 or users[0].all_input_nodes.count(node) != 1:
        return None
    return users[0] if users[0].op != "output" else None


def follow(node: Node, takes: Callable[[Node, Node], bool]) -> Node:
    """The end of the chain from a node on, each the only user of the one before that `takes(user, before)` takes."""
    while (after := only_user(node)) is not None and takes(after, node):
        node = after
    return node


def one_plus(node: Any) -> Any:
    """scale, where this is 1 + scale."""
    if not calls(node, operator.add):
        return None
    for one, scale in (node.args[:2], node.args[1::-1]):
        if number(one) and one == 1 and isinstance(value(scale), Tensor):
            return scale
    return None


def operands(node: Node, of: Node) -> Any:
    """The other of two operands."""
    a, b = node.args[:2]
    return b if a is of else a


def number(x: Any) -> bool:
    """Whether this is a constant of Python."""
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def insert(like: Node, function: Callable[..., Any], *arguments: Any, example: Any = None) -> Node:
    """A call of the function, before `like`, with what `like` says of itself; example: its value, if it is another."""
    graph = like.graph
    with graph.inserting_before(like):
        node = graph.call_function(function, arguments)
    node.meta = dict(like.meta)
    if example is not None:
        node.meta["example_value"] = example
        node.meta.pop("origin", None)  # not the value that the original has there
    return node


def replace(node: Node, function: Callable[..., Any], *arguments: Any) -> Node:
    """A call of the function in the node's place, with its value."""
    new = insert(node, function, *arguments)
    node.replace_all_uses_with(new)
    return new


def insert_module(like: Node, module: nn.Module, *arguments: Any, example: Any = None) -> Node:
    """As `insert`, a call of a module, which may keep something between calls."""
    graph = like.graph
    owner = graph.owning_module
    assert owner is not None  # passes work on graphs of modules
    name = f"{type(module).__name__.lower()}_{sum(1 for _ in owner.children())}"
    owner.add_submodule(name, module)
    with graph.inserting_before(like):
        new = graph.call_module(name, arguments)
    new.meta = dict(like.meta)
    if example is not None:
        new.meta["example_value"] = example
        new.meta.pop("origin", None)
    return new


def state(node: Node, module: nn.Module, *arguments: Any) -> Node:
    """A call of a module in the node's place, with its value."""
    new = insert_module(node, module, *arguments)
    node.replace_all_uses_with(new)
    return new


def forward(node: Node, to: Node) -> None:
    """Let `to`, which has the same value, stand for the node."""
    node.replace_all_uses_with(to)


def expand_dims(node: Any) -> Any:
    """The (B, C) tensor of which this is a view with dimensions of size 1, or None."""
    from fastdiff.compiler import functions

    if calls(node, torch.unsqueeze, functions.index, functions.reshape):
        inner = node.args[0]
        known = shape(inner)
        if rank(inner) == 2 and known is not None:
            kept = tuple(size for size in shape(node) or () if not same(size, 1))
            wanted = tuple(size for size in known if not same(size, 1))
            return inner if same(kept, wanted) else expand_dims(inner)
        return expand_dims(inner)
    return node if rank(node) == 2 else None
