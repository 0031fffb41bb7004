"""Calls that write to a tensor become calls that give a new one, which stands for it from there on.

Which calls those are, `effects` knows. What was given to the model is written to once, at the end, where everything has
been read. Which tensors share memory is known from the fake tensors of the capture: views share their storage. What is
written to is copied, with the views through which it is written, and views of it that are used later are taken of the
copy.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastdiff.compiler import effects, spellings
from fastdiff.compiler.errors import Unsupported
from fastdiff.compiler.nodes import Node, dtype, insert_module, same, shape, value
from fastdiff.compiler.written import STATEMENTS

# What cannot be done on a copy, in the order of the graph, with the same result.
_REFUSED = {"set_", "resize_", "resize_as_", "as_strided_", "share_memory_", "requires_grad_", "delitem"}
# Whose results share no memory with anything, and are no constants that a pass shares or keeps.
_NEW = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.empty_like, torch.zeros_like, torch.ones_like,
    torch.full_like, "new_empty", "new_zeros", "new_ones", "new_full", "clone",
}  # fmt: skip


# Views of a tensor whatever its strides; others, such as `flatten`, may copy one with other strides.
_VIEWS = {
    "getitem", "chunk", "tensor_split", "split", "split_with_sizes", "unbind", "select", "narrow", "transpose",
    "permute", "movedim", "swapaxes", "swapdims", "t", "unsqueeze", "squeeze", "diagonal", "expand", "expand_as",
    "detach",
}  # fmt: skip


class Changed(nn.Module):
    """A copy of a tensor after something was written to it, or the tensor itself where nobody else has it.

    reads_strides: whether it must have the original's strides for that, see `strides`.
    """

    def __init__(self, write: fx.GraphModule, reads_strides: bool) -> None:
        super().__init__()
        self.write, self.owned, self.reads_strides = write, False, reads_strides

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        x = x if self.owned else x.clone()
        self.write(x, *others)
        return x


def apply(graph: fx.Graph) -> None:
    """Rewrite all of them; inputs that were written to are written to at the end. Raises Unsupported where that would
    differ for whoever has the tensors."""
    effects.note(graph)
    inputs: dict[Node, Node] = {}
    for node in list(graph.nodes):
        mutated = mutates(node)
        if mutated is not None:
            _Rewriting(graph, node, mutated, inputs).run()
    _write_to_inputs(graph, inputs)


def mutates(node: Node) -> Node | None:
    """The tensor that the call writes to, or None."""
    found = effects.written(node)
    if not found:
        return None
    if len(found) > 1 or not isinstance(value(found[0]), Tensor):
        raise Unsupported(f"{node.name} writes to several tensors")
    return found[0]


def copy_to(x: Tensor, new: Tensor) -> None:
    """Write to an input of the graph what stands for it."""
    x.copy_(new)


def written_inputs(graph: fx.Graph) -> list[int]:
    """The places of the inputs that the graph writes to, at its end."""
    places = {node: place for place, node in enumerate(node for node in graph.nodes if node.op == "placeholder")}
    return [places[node.args[0]] for node in graph.nodes if node.target is copy_to]


def _write_to_inputs(graph: fx.Graph, inputs: dict[Node, Node]) -> None:
    """inputs: what stands for an input after the last call that wrote to it."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    for x, new in inputs.items():
        with graph.inserting_before(output):
            write = graph.call_function(copy_to, (x, new))
        write.meta = {"effects": effects.Effects(must_run=True), "example_value": None}
        for result in output.all_input_nodes:
            if result is not new and _memory_of(x) & _memory_of(result):
                raise Unsupported(f"{result.name} is a view of {x.name}, which was given to the model and changed")
        output.replace_input_with(new, x)


def _flag(node: Node) -> int | str | None:
    """Where the argument stands, a position or a name, that asks for writing into the first one."""
    if node.kwargs.get("inplace") is True:
        return "inplace"
    place = _place_of_flag(node.target) if node.op == "call_function" else None
    return place if place is not None and place < len(node.args) and node.args[place] is True else None


@functools.cache
def _place_of_flag(function: Any) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of C, without a signature: those with a flag are Python's
        return None
    return names.index("inplace") if "inplace" in names else None


def own(graph: fx.Graph) -> None:
    """After the passes: write into a tensor without a copy where it was made for that."""
    owner = graph.owning_module
    assert owner is not None
    for node in graph.nodes:
        changed = _changed(owner, node)
        if changed is not None:
            base = node.args[0]
            made = base.op in ("call_function", "call_method") and base.target in _NEW
            changed.owned = (made or _changed(owner, base) is not None) and set(base.users) == {node}
            changed.owned = changed.owned and node.all_input_nodes.count(base) == 1


def _changed(owner: nn.Module, node: Node) -> Changed | None:
    module = owner.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, Changed) else None


class _Rewriting:
    """Of one call."""

    def __init__(self, graph: fx.Graph, node: Node, mutated: Node, inputs: dict[Node, Node]) -> None:
        self.graph, self.node, self.mutated, self.inputs = graph, node, mutated, inputs
        self.random = effects.of(node).must_run
        self.order = {each: place for place, each in enumerate(graph.nodes)}
        self.storage = _storages(mutated)
        self.aliases = [
            each for each in graph.nodes if self.order[each] < self.order[node] and self.storage & _storages(each)
        ]

    def run(self) -> None:
        node, mutated = self.node, self.mutated
        name = _name(node)
        roots = [each for each in self.aliases if not any(each is not i and i in self.aliases for i in _inputs(each))]
        if len(roots) != 1 or len(self.storage) != 1:
            raise Unsupported(f"{node.name} changes {mutated.name} in place, of which the origin is not known")
        (base,) = roots
        if base.op not in ("call_function", "call_method", "call_module", "placeholder"):
            raise Unsupported(f"{node.name} changes {base.name} in place, a constant of the model")
        if name in _REFUSED or (node.users and not isinstance(value(node), Tensor)):
            raise Unsupported(f"{node.name} changes {mutated.name} in place, which is not done on a copy")
        given = next((x for x, now in self.inputs.items() if now is base), base if base.op == "placeholder" else None)
        # What was given is used later by whoever gave it.
        later = [
            each
            for each in self.aliases
            if (each is base and given is not None) or any(self._is_later(user) for user in each.users)
        ]
        if all(each is mutated for each in later) and not self.random and self._gives_the_same_anew():
            self._replace(mutated, node)
            self._forget()
            if given is not None:
                self.inputs[given] = node
            return
        if node.users and mutated not in later:
            later.append(mutated)
        through = [_name(each) for each in self._chain(mutated, base)]
        reads_strides = self.random or not _VIEWS.issuperset(through)
        new = insert_module(node, Changed(self._write(base), reads_strides), base, *self.others)
        new.meta = {key: entry for key, entry in base.meta.items() if key not in ("origin", "memory", "effects")}
        new.meta["effects"] = effects.Effects(must_run=self.random)
        if given is not None:
            self.inputs[given] = new
        views = {base: new}
        for each in later:
            self._replace(each, self._view_of(each, base, views))
        if node.users:
            node.replace_all_uses_with(views[mutated])
        self.graph.erase_node(node)
        self._forget()

    def _forget(self) -> None:
        """What was there before is used by nobody from here on: the memory belongs to what stands for it."""
        for each in self.aliases:
            each.meta["memory"] = frozenset()

    def _is_later(self, user: Node) -> bool:
        return self.order.get(user, -1) > self.order[self.node]

    def _replace(self, old: Node, new: Node) -> None:
        old.replace_all_uses_with(new, delete_user_cb=self._is_later)

    def _gives_the_same_anew(self) -> bool:
        """Turn the call into one that writes to nothing, if there is such a call with the same result."""
        node, mutated = self.node, self.mutated
        types = {dtype(each) for each in node.all_input_nodes if isinstance(value(each), Tensor)}
        if types != {dtype(mutated)} or not same(shape(node), shape(mutated)) or dtype(node) is not dtype(mutated):
            return False
        if node.target in STATEMENTS:
            node.target = STATEMENTS[node.target]
        elif (flag := _flag(node)) is not None:
            if isinstance(flag, str):
                node.kwargs = {**node.kwargs, flag: False}
            else:
                node.args = (*node.args[:flag], False, *node.args[flag + 1 :])
        elif node.op == "call_method" and callable(getattr(Tensor, str(node.target)[:-1], None)):
            node.target = str(node.target)[:-1]
        elif node.op != "call_function" or "out" in node.kwargs or spellings.canonical(node) is None:
            return False
        node.meta["effects"] = effects.Effects()
        return True

    def _chain(self, node: Node, base: Node) -> list[Node]:
        """The views that lead from the base to a node."""
        chain: list[Node] = []
        while node is not base:
            chain.append(node)
            inputs = {each for each in _inputs(node) if each in self.aliases}
            if len(inputs) != 1:
                raise Unsupported(f"{self.node.name} changes {self.mutated.name} in place, a view of several tensors")
            (node,) = inputs
        return chain[::-1]

    def _write(self, base: Node) -> fx.GraphModule:
        """The call with the views before it, as a graph of its own; sets `others`, what it reads beside the base."""
        chain = [*self._chain(self.mutated, base), self.node]
        inner = fx.Graph()
        places: dict[Node, Node] = {base: inner.placeholder("x")}
        self.others: list[Node] = []
        for each in chain:
            for used in _inputs(each):
                if used not in places and used not in chain:
                    places[used] = inner.placeholder(used.name)
                    self.others.append(used)
        for each in chain:
            places[each] = inner.node_copy(each, lambda used: places[used])
        inner.output(None)
        return fx.GraphModule(nn.Module(), inner)

    def _view_of(self, node: Node, base: Node, views: dict[Node, Node]) -> Node:
        """The same view of what stands for the base now."""
        for each in self._chain(node, base):
            if each not in views:
                with self.graph.inserting_before(self.node):
                    views[each] = self.graph.node_copy(each, lambda used: views.get(used, used))
                views[each].meta.pop("origin", None)
        return views[node]


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _inputs(node: Node) -> list[Node]:
    return list(node.all_input_nodes)


def _storages(node: Node) -> frozenset[int]:
    """The memory that a tensor, or those in a tuple, lie in."""
    return node.meta["memory"] if "memory" in node.meta else _memory_of(node)


def _memory_of(node: Node) -> frozenset[int]:
    """The same of a result of the graph as it was captured."""
    found = value(node)
    tensors = found if isinstance(found, (tuple, list)) else (found,)
    return frozenset(
        each.untyped_storage()._cdata for each in tensors if isinstance(each, Tensor) and each.layout is torch.strided
    )
