"""What the operators share: checks of their tensors, and registration with torch: the compiled kernel, its shapes, and
gradients; and the short way to the kernel, past torch's dispatcher, for calls in which it has nothing to do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# What the kernels call the types that they take.
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

_C = torch._C
_library = torch.library.Library("fastdiff", "FRAGMENT")


def check_tensor(name: str, tensor: Tensor, x: Tensor, *shapes: tuple[int, ...]) -> None:
    """Whether a tensor that goes with x has one of `shapes`, and x's device and dtype.

    Raises ValueError or TypeError that names the tensor, what was given and what was expected.
    """
    if tensor.shape not in shapes:
        wanted = " or ".join(map(str, dict.fromkeys(map(tuple, shapes))))
        raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {wanted} for x of {tuple(x.shape)}")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} is {tensor.dtype}, x is {x.dtype}")


def transformed() -> str | None:
    """Why no operator can be called: a transform is in force that goes through plain PyTorch only; or None."""
    if forward_ad._current_level >= 0:
        return "forward-mode gradients are being computed, and the operator has only backward ones"
    if not torch.compiler.is_compiling() and _C._are_functorch_transforms_active():
        return "a transform of torch.func is in force, and the operator has no rule for it"
    return None


# ---- the short way --------------------------------------------------------------------------------------------------
# The dispatcher takes the arguments apart and puts them together again for each of an operator's kernels in Python, one
# for autograd and one for the CPU: 8 us, more than a small tensor's result takes. Where it would do nothing else, the
# CPU kernel is called directly.

_has_torch_function = _C._has_torch_function
_included_keys = _C._dispatch_tls_local_include_set
_keys_of = _C._dispatch_keys
_profiler_enabled = _C._autograd._profiler_enabled


def _mask(*names: str) -> int:
    keys = [_C.DispatchKeySet(getattr(_C.DispatchKey, name)) for name in names]
    return functools.reduce(lambda a, b: a | b, keys).raw_repr()


# All dispatch keys but an ordinary CPU tensor's: one that is fake, batched, wrapped, negated, sparse ... has others.
_UNUSUAL = ~_mask("CPU", "ADInplaceOrView", "AutogradCPU", "AutocastCPU")
# All but those that every thread includes: modes, transforms (vmap, grad, functionalize) and tracers include others.
_INTERFERING = ~_mask("BackendSelect", "ADInplaceOrView")


def dispatch_is_trivial(tensors: Sequence[Tensor | None]) -> bool:
    """Whether torch's dispatcher would only call the CPU kernel: nobody traces, transforms or observes the call, the
    tensors are ordinary ones, and no gradient is wanted."""
    if (
        _included_keys().raw_repr() & _INTERFERING
        or _has_torch_function(tensors)  # of a subclass or of a mode such as set_default_device
        or _profiler_enabled()
    ):
        return False
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and (_keys_of(tensor).raw_repr() & _UNUSUAL or (grad and tensor.requires_grad)):
            return False
    return True


# ---- registration ---------------------------------------------------------------------------------------------------


def register(
    schema: str,
    *,
    kernel: Callable[..., Any],
    check: Callable[..., None],
    fake: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Register `torch.ops.fastdiff.<name>`; returns a function that calls it, by the short way where that is the same.

    schema: "name(Tensor x, ...) -> Tensor". kernel: for CPU tensors that passed `check`, which raises for those that do
    not fit. A call of the operator by its name checks; the function returned, which takes positional arguments only,
    leaves that to its caller. fake: the result's shape, dtype and strides, without values. save, backward: as for
    torch.library.register_autograd.
    """
    name = schema.split("(", 1)[0]

    def checked(*arguments: Any) -> Any:
        check(*arguments)  # the kernel gets bare addresses
        return kernel(*arguments)

    _library.define(schema)
    _library.impl(name, checked, "CPU")
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=_library)
    torch.library.register_autograd(f"fastdiff::{name}", backward, setup_context=save, lib=_library)
    operator = getattr(torch.ops.fastdiff, name).default
    types = [str(argument.type) for argument in operator._schema.arguments]
    places = [index for index, kind in enumerate(types) if "Tensor" in kind]
    tensors_of = itemgetter(*places)  # a tuple of tensors, or the one list of them

    def call(*arguments: Any) -> Any:
        if not torch.compiler.is_compiling() and dispatch_is_trivial(tensors_of(arguments)):
            return kernel(*arguments)
        return operator(*arguments)

    return call


def through_reference(reference: Callable[..., Tensor]) -> dict[str, Callable[..., Any]]:
    """save and backward of an operator whose result is one tensor: backward runs the reference, which takes the same
    arguments, and differentiates it."""

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

    return {"save": save, "backward": backward}
