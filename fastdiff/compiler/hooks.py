"""Which hooks a model has: a captured graph holds those that there were, and no others.

Dynamo can guard the hooks of each module (`skip_nnmodule_hook_guards`), which doubled the time of a call of 61 small
modules. Every registration takes a number from one counter, so nearly all calls need to look at that alone, at the
hooks that are there, which may be removed, and at whether modules were replaced.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from typing import Any

import torch.nn.modules.module as of_all_modules
from torch import nn
from torch.utils.hooks import RemovableHandle

from fastdiff.runtime.native import core

_KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


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
            and all(tuple(hooks) == numbers for hooks, numbers in self._present)
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
        self._parts = core.Held([part._modules for part in parts.values() if part._modules])
        found = [(name, kind, hooks, tuple(hooks)) for name, kind, hooks in _hooks(parts) if hooks]
        self._present = [(hooks, numbers) for _, _, hooks, numbers in found]
        self.state = tuple((name, kind, numbers) for name, kind, _, numbers in found)  # no number is used twice


def _hooks(parts: dict[str, nn.Module]) -> Iterator[tuple[str, str, dict[int, Any]]]:
    for kind in _KINDS:
        yield "", f"global{kind}", getattr(of_all_modules, f"_global{kind}")
        for name, part in parts.items():
            yield name, kind, getattr(part, kind)
