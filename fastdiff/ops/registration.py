"""Registration of an operator with torch: the compiled kernel, its shapes, and gradients through the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("fastdiff", "FRAGMENT")


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
            inputs = [a if not isinstance(a, Tensor) or again else a.detach() for a in arguments]
            for index in wanted:
                inputs[index].requires_grad_()
            result = reference(*inputs)
            found = torch.autograd.grad(result, [inputs[i] for i in wanted], gradient, create_graph=again)
        gradients: list[Tensor | None] = [None] * len(arguments)
        for index, value in zip(wanted, found):
            gradients[index] = value
        return tuple(gradients)

    torch.library.register_autograd(f"fastdiff::{name}", backward, setup_context=save, lib=_library)
