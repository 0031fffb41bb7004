"""What a model refers to, as far as it can be seen: what a captured graph of it depends on.

A graph reads parameters where they were and has the values of everything else in it. It is of use for the same model
object as long as all of that is the same, which is compared before each replay. Of a module these are its parameters,
buffers, plain attributes and hooks; of a function its code and what its closure, its defaults and the global names that
it uses hold. Whatever else it refers to may change unseen, and then nothing is captured.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

MAX_PARTS = 10_000
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device)
FIXED = (ModuleType, type, BuiltinFunctionType)  # taken to be what they are


class Unseen(Exception):
    """Something is referred to whose contents cannot be compared; the message says where."""


def owner(model: Callable[..., Any]) -> Any:
    """The object whose life ends that of its graphs: a module of which the model is a method, else the model itself."""
    return model.__self__ if isinstance(model, MethodType) and isinstance(model.__self__, nn.Module) else model


def fingerprint(model: Callable[..., Any]) -> Hashable:
    """What must be the same for a graph to be of use; holds no reference to tensors or modules. Raises Unseen."""
    parts: list[Hashable] = []
    seen: set[int] = set()
    for part in _walk(model, "the model", seen):
        parts.append(part)
        if len(parts) > MAX_PARTS:
            raise Unseen(f"the model refers to more than {MAX_PARTS} things")
    return tuple(parts)


def _walk(value: Any, name: str, seen: set[int]) -> Iterator[Hashable]:
    if isinstance(value, PLAIN):
        yield type(value), value
        return
    if isinstance(value, Tensor):
        yield value.data_ptr(), value.dtype, value.shape, value.stride()
        return
    # A container made anew with the same contents is the same.
    yield type(value) if isinstance(value, (Mapping, list, tuple)) else id(value)
    if id(value) in seen or isinstance(value, FIXED):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield from _of_module(value)
    elif isinstance(value, functools.partial):
        yield from _walk(value.func, f"{name}'s function", seen)
        yield from _walk(value.args, f"{name}'s arguments", seen)
        yield from _walk(value.keywords, f"{name}'s arguments", seen)
    elif isinstance(value, MethodType):
        yield from _walk(value.__self__, f"{name}'s object", seen)
        if not isinstance(value.__self__, nn.Module):
            yield from _walk(value.__func__, name, seen)
    elif isinstance(value, FunctionType):
        if not _of_a_library(value):
            yield from _of_function(value, seen)
    elif isinstance(value, Mapping):
        yield len(value)
        for key, item in value.items():
            yield from _walk(key, f"a key of {name}", seen)
            yield from _walk(item, f"{name}[{key!r}]", seen)
    elif isinstance(value, (list, tuple)):
        yield len(value)
        for index, item in enumerate(value):
            yield from _walk(item, f"{name}[{index}]", seen)
    else:
        raise Unseen(f"{name} is of the type {type(value).__qualname__}, which may change unseen")


def _of_module(module: nn.Module) -> Iterator[Hashable]:
    """Where parameters and buffers are, and all else that is plain."""
    for t in (*module.parameters(), *module.buffers()):
        yield t.data_ptr(), t.dtype, t.shape
    for part in module.modules():
        plain = tuple((k, v) for k, v in vars(part).items() if isinstance(v, (bool, int, float, str, type(None))))
        hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
        yield id(part), plain, tuple(map(id, hooks))


def _of_function(function: FunctionType, seen: set[int]) -> Iterator[Hashable]:
    yield id(function.__code__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            yield name, None
            continue
        yield from _walk(content, f"'{name}'", seen)
    yield from _walk(function.__defaults__ or (), f"a default of {function.__name__}", seen)
    yield from _walk(function.__kwdefaults__ or {}, f"a default of {function.__name__}", seen)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name
            yield from _walk(function.__globals__[name], f"'{name}'", seen)


def _names(code: CodeType) -> set[str]:
    """Global names, and attributes, which cannot be told from them, of a function and of those inside it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found


def _of_a_library(function: FunctionType) -> bool:
    """Whether a function is torch's or Python's own."""
    package = (function.__module__ or "").partition(".")[0]
    return package == "torch" or (package in sys.stdlib_module_names and package != "__main__")
