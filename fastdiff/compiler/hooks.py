"""Which hooks a model has, and which `forward` its classes: a captured graph holds those that were, and no others.

Dynamo can guard the hooks of each module (`skip_nnmodule_hook_guards`), which doubled the time of a call of 61 small
modules. Every registration takes a number from one counter, so nearly all calls need to look at that alone, at the
hooks that are there, which may be removed, and at whether modules were replaced, or hooks put in without a number.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from typing import Any

import torch.nn.modules.module as of_all_modules
from torch import nn
from torch.jit import ScriptModule
from torch.utils.hooks import RemovableHandle

from fastdiff.runtime.native import core

_KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_BY_HAND = _KINDS[:2]  # into which some tools put hooks themselves


class Hooks:
    """The hooks of a module and its parts, and those of all modules."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self.state: Hashable = None
        self._look()

    def changed(self) -> bool:
        """Whether there are others now than at the last call; `state` then says which."""
        if (
            self._registered == RemovableHandle.next_id
            and self._parts.same()
            and all(_are(*present) for present in self._present)
            and [each.forward for each in self._classes] == self._forwards
        ):
            return False
        before = self.state
        self._look()
        return self.state != before

    def _look(self) -> None:
        self._registered = RemovableHandle.next_id
        module = self._module()
        assert module is not None  # it is being called
        parts = dict(module.named_modules(remove_duplicate=False))
        held = [part._modules for part in parts.values() if isinstance(part._modules, dict)]  # not of TorchScript
        held += [getattr(part, kind) for part in parts.values() for kind in _BY_HAND]
        self._parts = core.Held([each for each in held if each is not None])
        found = [(name, owner, kind, hooks, tuple(hooks)) for name, owner, kind, hooks in _hooks(parts) if hooks]
        self._present = [(weakref.ref(owner), kind, hooks, numbers) for _, owner, kind, hooks, numbers in found]
        self._classes = list({type(part): None for part in parts.values() if not isinstance(part, ScriptModule)})
        self._forwards = [each.forward for each in self._classes]
        hooks = tuple((name, kind, numbers) for name, _, kind, _, numbers in found)  # no number is used twice
        self.state = hooks, *zip(self._classes, self._forwards)


def _are(owner: weakref.ref[Any], kind: str, hooks: dict[int, Any], numbers: tuple[int, ...]) -> bool:
    """Whether these are still the owner's hooks, and no other ones."""
    return getattr(owner(), kind, None) is hooks and tuple(hooks) == numbers


def _hooks(parts: dict[str, nn.Module]) -> Iterator[tuple[str, Any, str, dict[int, Any]]]:
    """Where they are by name, the module of nn or Python that has them as an attribute, its name, and the hooks."""
    for kind in _KINDS:
        yield "", of_all_modules, f"_global{kind}", getattr(of_all_modules, f"_global{kind}")
        for name, part in parts.items():
            yield name, part, kind, getattr(part, kind)
