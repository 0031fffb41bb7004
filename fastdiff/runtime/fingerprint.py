"""What a model refers to, as far as it can be seen: what a captured graph of it depends on.

A graph reads parameters where they were and has the values of everything else in it. It is of use for the same model
object as long as all of that is the same, which is compared before each replay. Of a module these are its parts by name
and class, their parameters, buffers, attributes and hooks, and what `fastdiff.optimize` or `Module.compile` made of
them; of a function its code and what its closure, its defaults and the global names that it uses hold.

Whatever else a function refers to may change unseen, and then nothing is captured. An attribute of a module that is
neither a tensor, a module, a number, a string nor a container of such is known by which object it is: what changes
inside it is not seen (`fastdiff.runtime.graphs.forget` is for that).
"""

from __future__ import annotations

import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
import torch.nn.modules.module as of_all_modules
from torch import Tensor, nn

from fastdiff.runtime.offloading import moved

MAX_PARTS = 10_000
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device)
_PLAIN = frozenset(PLAIN)
FIXED = (ModuleType, type, BuiltinFunctionType)  # taken to be what they are
# Of every module, and compared apart or of no matter to what it computes.
INTERNAL = frozenset((*vars(nn.Module()), "_compiled_call_impl")) - {"training"}


class Unseen(Exception):
    """Something is referred to whose contents cannot be compared, or weights are moved; the message says where."""


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


def _walk(value: Any, name: str, seen: set[int], strict: bool = True) -> Iterator[Hashable]:
    """strict: raise Unseen for what cannot be compared; else it is known by which object it is."""
    if isinstance(value, PLAIN):
        yield type(value), value
        return
    if isinstance(value, Tensor):
        yield _of_tensor(value)
        return
    yield _which(value)
    if id(value) in seen or isinstance(value, FIXED):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield from _of_module(value, seen)
    elif isinstance(value, Mapping):
        yield len(value)
        for key, item in value.items():
            yield from _walk(key, f"a key of {name}", seen, strict)
            yield from _walk(item, f"{name}[{key!r}]", seen, strict)
    elif isinstance(value, (list, tuple)):
        yield len(value)
        for index, item in enumerate(value):
            yield from _walk(item, f"{name}[{index}]", seen, strict)
    elif not strict:
        return
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
    else:
        raise Unseen(f"{name} is of the type {type(value).__qualname__}, which may change unseen")


def _of_tensor(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _of_module(module: nn.Module, seen: set[int]) -> Iterator[Hashable]:
    """All that decides what it computes: one entry for each module in it."""
    yield tuple(of_all_modules._global_forward_pre_hooks), tuple(of_all_modules._global_forward_hooks)
    parts = dict(module.named_modules())
    if (reason := moved(parts.values())) is not None:
        raise Unseen(reason)
    addresses = set(map(id, parts.values()))
    seen |= addresses
    yield tuple(number for part, number in _renewed.items() if id(part) in addresses)
    for name, part in parts.items():
        call = part._compiled_call_impl
        entry: list[Any] = [name, _serial(type(part)), None if call is None else _serial(call)]
        for tensors in (part._parameters, part._buffers):
            if tensors:
                for key, tensor in tensors.items():
                    if tensor is not None:
                        entry += (key, *_of_tensor(tensor))
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            if hooks:
                entry += [(key, _serial(hook)) for key, hook in hooks.items()]
        for key, value in vars(part).items():
            if key not in INTERNAL:
                kind = type(value)
                # Nearly all are plain: in one row, as a tuple for each is most of the time.
                if kind in _PLAIN:
                    entry += (key, kind, value)
                else:
                    entry += (key, _attribute(value, key, seen))
        yield tuple(entry)


_renewed: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def renew(module: nn.Module) -> None:
    """Let no fingerprint of what the module is in be that of before."""
    _renewed[module] = _renewed.get(module, 0) + 1


def _attribute(value: Any, name: str, seen: set[int]) -> Hashable:
    kind = type(value)
    if kind is tuple or kind is list:  # mostly of plain values
        kinds = [*map(type, value)]
        if len(kinds) < MAX_PARTS and _PLAIN.issuperset(kinds):
            return kind, *kinds, *value
    parts = tuple(itertools.islice(_walk(value, name, seen, strict=False), MAX_PARTS + 1))
    if len(parts) > MAX_PARTS:
        raise Unseen(f"the attribute {name!r} of a module holds more than {MAX_PARTS} things")
    return parts


def _which(value: Any) -> Hashable:
    """Which object it is. Containers and methods, which are made anew, are the same if their contents are."""
    if isinstance(value, MethodType):
        return _serial(value.__self__), _serial(value.__func__)
    return type(value) if isinstance(value, (Mapping, list, tuple)) else _serial(value)


_serials: dict[int, tuple[weakref.ref[Any], int]] = {}
_numbers = itertools.count()


def _serial(value: Any) -> int:
    """A number that no other object has had: an address is given again when its object is gone. The address of what
    cannot be watched."""
    known = _serials.get(id(value))
    if known is None or known[0]() is not value:

        def gone(_: Any, address: int = id(value)) -> None:
            _serials.pop(address, None)

        try:
            known = weakref.ref(value, gone), next(_numbers)
        except TypeError:
            return id(value)
        _serials[id(value)] = known
    return known[1]


def _of_function(function: FunctionType, seen: set[int]) -> Iterator[Hashable]:
    yield _serial(function.__code__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            yield name, None
            continue
        yield from _walk(content, f"'{name}'", seen)
    yield from _walk(function.__defaults__ or (), f"a default of {function.__name__}", seen)
    yield from _walk(function.__kwdefaults__ or (), f"a default of {function.__name__}", seen)
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
