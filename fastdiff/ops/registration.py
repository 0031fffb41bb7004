"""What the operators share: checks of their tensors, and registration with torch: the compiled kernel, its shapes, and
gradients through the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import expect

# What the kernels call the types that they take.
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

_library = torch.library.Library("fastdiff", "FRAGMENT")


def check_tensors(x: Tensor, wanted: Mapping[str, tuple[Tensor | None, Sequence[tuple[int, ...]]]]) -> None:
    """Whether the tensors that go with x, where they are given, have one of their shapes, and x's device and dtype.

    Raises ValueError or TypeError that names the tensor, what was given and what was expected.
    """
    for name, (tensor, shapes) in wanted.items():
        if tensor is None:
            continue
        expect(
            tuple(tensor.shape) in shapes,
            f"{name} is {tuple(tensor.shape)}, expected {' or '.join(map(str, dict.fromkeys(shapes)))} "
            f"for x of {tuple(x.shape)}",
        )
        expect(tensor.device == x.device, f"{name} is on {tensor.device}, x on {x.device}")
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, x is {x.dtype}")


def register(schema: str, *, kernel: Callable[..., Tensor], fake: Callable[..., Tensor], reference: Callable) -> None:
    """Register `torch.ops.fastdiff.<name>` with one tensor as its result.

    schema: "name(Tensor x, ...) -> Tensor". kernel: for the CPU. fake: the result's shape, dtype and strides, without
    values. reference: the same arguments in plain PyTorch; backward runs it again and differentiates it.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, kernel, "CPU")
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=_library)

    def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        ctx.others = [value for value in inputs if not isinstance(value, Tensor)]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
        arguments = [next(tensors) if is_tensor else next(others) for is_tensor in ctx.is_tensor]
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad) if needed]
        with torch.enable_grad():
            again = torch.is_grad_enabled() and gradient.requires_grad  # a gradient of the gradient is asked for
            inputs: list[Any] = [a if not isinstance(a, Tensor) or again else a.detach() for a in arguments]
            for index in wanted:
                inputs[index].requires_grad_()
            result = reference(*inputs)
            found = torch.autograd.grad(result, [inputs[i] for i in wanted], gradient, create_graph=again)
        gradients: list[Tensor | None] = [None] * len(arguments)
        for index, value in zip(wanted, found):
            gradients[index] = value
        return tuple(gradients)

    torch.library.register_autograd(f"fastdiff::{name}", backward, setup_context=save, lib=_library)
