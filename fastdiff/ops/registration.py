"""How torch knows an operator, torch.ops.fastdiff.<name>: its schema, kernels, the shapes of results, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor

from fastdiff.ops.tensors import check_tensor

_library = torch.library.Library("fastdiff", "FRAGMENT")
_SCHEMA = {
    Tensor: "Tensor", Tensor | None: "Tensor?", list[Tensor]: "Tensor[]", float: "float", float | None: "float?",
    list[float]: "float[]", int: "int", bool: "bool", str: "str", str | None: "str?",
}  # fmt: skip


def kinds_of(arguments: Any) -> list[str]:
    """The types of a NamedTuple's fields, as schemas name them."""
    hints = get_type_hints(arguments)
    return [_SCHEMA[hints[name]] for name in arguments._fields]


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], *, on_gpu: bool) -> torch._ops.OpOverload:
    """Define `torch.ops.fastdiff.<name>` and return it. schema: "name(Tensor x, ...) -> Tensor"."""
    name = schema.split("(", 1)[0]
    _library.define(schema)
    for key in ("CPU", "CUDA") if on_gpu else ("CPU",):
        _library.impl(name, kernel, key)
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=_library)
    return getattr(torch.ops.fastdiff, name).default


def register(op: Any) -> torch._ops.OpOverload:
    """The operator by its name, with gradients."""
    defaults = op.Arguments._field_defaults
    fields = [
        f"{kind} {name}" + (f"={_literal(defaults[name])}" if name in defaults else "")
        for name, kind in zip(op.Arguments._fields, kinds_of(op.Arguments))
    ]
    made = define(
        f"{op.name}({', '.join(fields)}) -> {op.results}",
        op.named,
        lambda *values: op.fake(op.Arguments(*values)),
        on_gpu=op.has_triton,
    )

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        op.save(ctx, inputs, output)

    torch.library.register_autograd(f"fastdiff::{op.name}", op.backward, setup_context=setup, lib=_library)
    return made


def register_backward(op: Any) -> torch._ops.OpOverload:
    """Its gradients as an operator of their own, so that torch.compile traces past them."""
    kinds = kinds_of(op.Arguments)
    results, kept = op.results.count("Tensor"), len(op.keeps)
    names = [f"Tensor gradient_{k}" for k in range(results)] + [f"Tensor result_{k}" for k in op.keeps]
    fields = [f"{kind} {name}" for name, kind in zip(op.Arguments._fields, kinds)]

    def split(values: tuple[Any, ...]) -> tuple[Any, Sequence[Tensor], Sequence[Tensor]]:
        return op.Arguments(*values[results + kept :]), values[:results], values[results : results + kept]

    def compute(*values: Any) -> tuple[Tensor, ...]:
        a, gradients, saved = split(values)
        x = a[0]
        op.check(a)
        made = op.fake(a)
        made = (made,) if isinstance(made, Tensor) else made
        for gradient, result in zip((*gradients, *saved), (*made, *(made[place] for place in op.keeps))):
            check_tensor("gradient", gradient, x, result.shape)
        if (reason := op.undifferentiated(a)) is not None:
            raise ValueError(f"there is no kernel for these gradients: {reason}")
        op.check_reach(a)
        return tuple(x.new_empty((0,)) if t is None else t for t in op.compute_backward(a, gradients, saved))

    def fake(*values: Any) -> tuple[Tensor, ...]:
        a, *_ = split(values)
        return tuple(a[0].new_empty((0,)) if t is None else t for t in op.empty_gradients(a))

    tensors = ", ".join(["Tensor"] * sum(kind.startswith("Tensor") for kind in kinds))
    schema = f"{op.name}_backward({', '.join([*names, *fields])}) -> ({tensors})"
    return define(schema, compute, fake, on_gpu=op.has_triton)


def recorded(op: Any) -> Callable[..., Any]:
    """The kernel with its gradients, for a call that goes past the dispatcher."""

    def forward(ctx: Any, *values: Any) -> Any:
        results = op._compute(op.Arguments(*values))
        op.save(ctx, values, results)  # not as setup_context, for which torch looks up signatures in every call
        return results

    functions = {"forward": staticmethod(forward), "backward": staticmethod(op.backward)}
    function: Any = type(f"fastdiff_{op.name}", (torch.autograd.Function,), functions)
    return function.apply


def differentiated(
    reference: Callable[..., Any], a: Any, wanted: Sequence[bool], gradients: Sequence[Tensor | None], again: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of the arguments `a` that are wanted, by differentiating the reference. again: themselves to be
    differentiated."""
    with torch.enable_grad():
        inputs: list[Any] = [x if not isinstance(x, Tensor) or again else x.detach() for x in a]
        leaves = [x.requires_grad_() for x, needed in zip(inputs, wanted) if needed]
        found = reference(type(a)(*inputs))
        pairs = [(y, g) for y, g in zip([found] if isinstance(found, Tensor) else found, gradients) if g is not None]
        results, directions = zip(*((y, g) for y, g in pairs if y is not None and y.requires_grad))
        values = iter(torch.autograd.grad(results, leaves, directions, create_graph=again))
    return tuple(next(values) if needed else None for needed in wanted)


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
