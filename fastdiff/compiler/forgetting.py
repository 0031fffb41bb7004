"""Giving back what Dynamo keeps of a compiled function.

Dynamo holds a function's captures by its code, and the guards of each for as long as what they look at lives, which of
a class or a function of PyTorch is for good: without this, 25 KB stayed of each module of each model that was deleted.
"""

from __future__ import annotations

import sys
from types import FunctionType


def forget(function: FunctionType) -> None:
    """Drop all captures of a function that has globals of its own; it is not called again."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    if frames is None:  # nothing was captured, or Python ends
        return
    entries = getattr(frames, "_debug_get_cache_entry_list", None)  # not public: where it is missing, guards stay
    own = [each for each in function.__globals__.values() if isinstance(each, FunctionType)]
    for each in (function, *own):  # those are what follows a graph break
        if each.__globals__ is not function.__globals__:
            continue
        guards = [entry.guard_manager for entry in entries(each.__code__)] if entries is not None else []
        frames.reset_code(each.__code__)
        for manager in guards:
            for name in vars(manager):
                setattr(manager, name, None)
    for name in function.__globals__:
        function.__globals__[name] = None
