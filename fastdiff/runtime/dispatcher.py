"""When torch's dispatcher has nothing to do, and when a transform is in force that the operators cannot follow.

The dispatcher takes a call's arguments apart and puts them together again for each of an operator's kernels in Python,
one for autograd and one for the CPU: 8 us, more than a small tensor's result takes. Where it would do nothing else, the
CPU kernel is called directly.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

_C = torch._C
_has_torch_function = _C._has_torch_function
_included_keys = _C._dispatch_tls_local_include_set
_keys_of = _C._dispatch_keys
_is_grad_enabled = torch.is_grad_enabled
any_autocast = _C._is_any_autocast_enabled
_profiler_enabled = _C._autograd._profiler_enabled


def _mask(*names: str) -> int:
    keys = [_C.DispatchKeySet(getattr(_C.DispatchKey, name)) for name in names]
    return functools.reduce(lambda a, b: a | b, keys).raw_repr()


# All dispatch keys but an ordinary tensor's: one that is fake, batched, wrapped, negated, sparse ... has others.
_UNUSUAL = ~_mask("CPU", "ADInplaceOrView", "AutogradCPU", "AutocastCPU")
_UNUSUAL_ON_GPU = _UNUSUAL & ~_mask("CUDA", "AutogradCUDA", "AutocastCUDA")
# All but those that every thread includes: modes, transforms (vmap, grad, functionalize) and tracers include others.
_INTERFERING = ~_mask("BackendSelect", "ADInplaceOrView")


def is_trivial(tensors: Sequence[Tensor | None]) -> bool:
    """Whether torch's dispatcher would only call the CPU's or the GPU's kernel: nobody traces, transforms or observes
    the call, the tensors are ordinary ones, and no gradient is wanted, backward or forward."""
    if forward_ad._current_level >= 0:
        return False
    grad = _is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and ((grad and tensor.requires_grad) or _keys_of(tensor).raw_repr() & _UNUSUAL_ON_GPU):
            return False
    # as in is_watched
    return not (_included_keys().raw_repr() & _INTERFERING or _has_torch_function(tensors) or _profiler_enabled())


def is_only_profiled(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a call would be trivial, were it not for torch's profiler, which is to see what runs otherwise."""
    if not _profiler_enabled() or forward_ad._current_level >= 0 or wants_gradient(tensors):
        return False
    interfering = _included_keys().raw_repr() & _INTERFERING or _has_torch_function(tensors)
    return not interfering and all(tensor is None or is_memory(tensor) for tensor in tensors)


def only_wants_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """The same, but for a gradient: whether the dispatcher would only record the call for backward and then call the
    CPU kernel."""
    if is_watched(tensors):
        return False
    return all(tensor is None or is_ordinary(tensor) for tensor in tensors) and wants_gradient(tensors)


def wants_gradient(values: Sequence[object]) -> bool:
    """Whether a gradient is wanted for one of the tensors among these."""
    if _is_grad_enabled():
        for value in values:  # any() with a generator takes twice as long
            if value is not None and isinstance(value, Tensor) and value.requires_grad:
                return True
    return False


def is_watched(tensors: Sequence[Tensor | None] = ()) -> bool:
    """Whether a tracer, transform, mode or profiler is in force, or one of the tensors has a `__torch_function__`."""
    return bool(
        _included_keys().raw_repr() & _INTERFERING
        or _has_torch_function(tensors)  # true for function modes, such as set_default_device, as well
        or _profiler_enabled()
    )


def in_forward_mode() -> bool:
    """Whether forward-mode gradients are being computed."""
    return forward_ad._current_level >= 0


def is_ordinary(tensor: Tensor) -> bool:
    """Whether this is memory on the CPU and nothing else: not fake, wrapped, negated, sparse ..."""
    return not _keys_of(tensor).raw_repr() & _UNUSUAL


def is_memory(tensor: Tensor) -> bool:
    """The same on the CPU or a GPU."""
    return not _keys_of(tensor).raw_repr() & _UNUSUAL_ON_GPU


def differentiable(tensor: Tensor) -> Tensor:
    """The tensor; a copy of one that was made under torch.inference_mode, which autograd refuses. To be called outside
    of that mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def transformed() -> str | None:
    """Why no operator can be called: a transform is in force that goes through plain PyTorch only; or None."""
    if forward_ad._current_level >= 0:
        return "forward-mode gradients are being computed, and the operator has only backward ones"
    if not is_compiling() and _C._are_functorch_transforms_active():
        return "a transform of torch.func is in force, and the operator has no rule for it"
    return None
