"""What the operators share: checks of their tensors, and registration with torch: the compiled kernel, its shapes, and
gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from fastdiff.runtime import choice, dispatcher

# What the kernels call the types that they take.
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

_library = torch.library.Library("fastdiff", "FRAGMENT")


def is_direct(x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    """Whether a call with these tensors, x among them, needs the compiled kernel and nothing else: they are ordinary
    ones on the CPU, of a type that kernels take, and no gradient is wanted."""
    return (
        not torch.compiler.is_compiling()
        and dispatcher.is_trivial(tensors)  # at once where a gradient is wanted
        and x.dtype in TYPES
        and choice.current() in ("auto", "cpu")
    )


def is_left_to_torch(x: Tensor, slower: str | None) -> bool:
    """Whether torch computes what an operator is given: its kernel would take x, on the CPU, but is slower."""
    return slower is not None and x.is_cpu and choice.current() == "auto"


def check_tensor(name: str, tensor: Tensor, x: Tensor, *shapes: tuple[int, ...]) -> None:
    """Whether a tensor that goes with x has one of `shapes`, and x's device and dtype.

    Raises ValueError or TypeError that names the tensor, what was given and what was expected.
    """
    if tensor.shape in shapes and tensor.dtype is x.dtype and tensor.is_cpu and x.is_cpu:
        return  # as nearly always, and quickly
    if tensor.shape not in shapes:
        wanted = " or ".join(map(str, dict.fromkeys(map(tuple, shapes))))
        raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {wanted} for x of {tuple(x.shape)}")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} is {tensor.dtype}, x is {x.dtype}")


def define(schema: str, kernels: Mapping[str, Callable[..., Any]], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Define `torch.ops.fastdiff.<name>` and return it. schema: "name(Tensor x, ...) -> Tensor"; kernels: by dispatch
    key, "CPU" or "CUDA"; fake: the result's shape, dtype and strides, without values."""
    name = schema.split("(", 1)[0]
    _library.define(schema)
    for key, kernel in kernels.items():
        _library.impl(name, kernel, key)
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=_library)
    return getattr(torch.ops.fastdiff, name).default


def empty_gradients(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """A contiguous tensor without values for each of the tensors; without elements for those that are None."""
    return [
        x.new_empty((0,)) if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in tensors
    ]


def register(
    schema: str,
    *,
    kernel: Callable[..., Any],
    check: Callable[..., None],
    fake: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    triton: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register `torch.ops.fastdiff.<name>`; returns a function that calls it, by the short way where that is the same.

    schema: "name(Tensor x, ...) -> Tensor". kernel: for CPU tensors that passed `check`, which raises for those that do
    not fit. A call of the operator by its name checks; the function returned, which takes positional arguments only,
    leaves that to its caller. fake: the result's shape, dtype and strides, without values. save, backward: as for
    torch.library.register_autograd; without them the operator has no gradients. triton: as kernel, for CUDA tensors,
    and where the triton backend is insisted on.
    """
    name = schema.split("(", 1)[0]

    def on_cpu(*arguments: Any) -> Any:
        run = triton if triton is not None and choice.current() == "triton" else kernel
        return run(*arguments)

    def checked(*arguments: Any) -> Any:
        check(*arguments)  # the kernel gets bare addresses
        return on_cpu(*arguments)

    def checked_on_gpu(*arguments: Any) -> Any:
        check(*arguments)
        assert triton is not None
        return triton(*arguments)

    operator = define(schema, {"CPU": checked} | ({"CUDA": checked_on_gpu} if triton else {}), fake)
    if backward is not None:
        torch.library.register_autograd(f"fastdiff::{name}", backward, setup_context=save, lib=_library)
    types = [str(argument.type) for argument in operator._schema.arguments]
    places = [index for index, kind in enumerate(types) if "Tensor" in kind]
    tensors_of = itemgetter(*places)  # a tuple of tensors, or the one list of them
    in_lists = any("List" in kind for kind in types)  # whose gradients torch.autograd.Function does not follow
    recorded = None if backward is None or save is None or in_lists else _function(name, on_cpu, save, backward)

    def call(*arguments: Any) -> Any:
        if not torch.compiler.is_compiling():
            tensors = tensors_of(arguments)
            if dispatcher.is_trivial(tensors):
                return on_cpu(*arguments)
            if recorded is not None and dispatcher.only_wants_gradient(tensors):
                return recorded(*arguments)
        return operator(*arguments)

    return call


def _function(
    name: str, kernel: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The kernel with its gradients, for a call that goes past the dispatcher."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        result = kernel(*arguments)
        save(ctx, arguments, result)  # not as setup_context, for which torch looks the signature up in every call
        return result

    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"fastdiff_{name}", (torch.autograd.Function,), functions)
    return function.apply


def through_reference(
    reference: Callable[..., Tensor], *own: Callable[..., Sequence[Tensor | None] | None]
) -> dict[str, Callable[..., Any]]:
    """save and backward of an operator whose result is one tensor: backward runs the reference, which takes the same
    arguments, and differentiates it.

    own: each, called with the gradient and the arguments, gives a gradient or None for each argument, or None where it
    has no kernel for them. They are asked first, unless gradients of the gradients are wanted.
    """

    def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        ctx.others = [value for value in inputs if not isinstance(value, Tensor)]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
        arguments = [next(tensors) if is_tensor else next(others) for is_tensor in ctx.is_tensor]
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad) if needed]
        again = torch.is_grad_enabled()  # a gradient of the gradient is asked for
        for found_by in own if not again else ():
            if (own_gradients := found_by(gradient, *arguments)) is not None:
                return tuple(value if needed else None for value, needed in zip(own_gradients, ctx.needs_input_grad))
        with torch.enable_grad():
            inputs: list[Any] = [a if not isinstance(a, Tensor) or again else a.detach() for a in arguments]
            for index in wanted:
                inputs[index].requires_grad_()
            result = reference(*inputs)
            found = torch.autograd.grad(result, [inputs[i] for i in wanted], gradient, create_graph=again)
        gradients: list[Tensor | None] = [None] * len(arguments)
        for index, value in zip(wanted, found):
            gradients[index] = value
        return tuple(gradients)

    return {"save": save, "backward": backward}
