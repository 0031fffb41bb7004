"""`fastdiff.optimize`, `refresh` and `restore`: of a module, or of a pipeline of diffusers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastdiff import arguments
from fastdiff.compiler.optimize import optimize_module, refresh_module, restore_module
from fastdiff.runtime import environment
from fastdiff.runtime.telling import show


def optimize(module: Any, *, verify: bool = False, disable: Sequence[str] = (), progress: bool = False) -> Any:
    """Make a model run through fastdiff's compiler; returns the same object.

    module: a torch.nn.Module, or a pipeline of diffusers: all its networks but those of transformers, and its
    schedulers where a step can run in one pass (disable=["scheduler"] leaves them; `explain(pipe)` says which). A
    module's parameters, state_dict, hooks and signature stay. verify: compare the first call with the original, and go
    back to it with a warning if they differ. disable: names of passes to leave out. progress: say on stderr when a
    model is being captured, which takes seconds at the first call; the logger "fastdiff" has it at the level INFO
    whether it is shown or not. Where a gradient is wanted the original runs. `restore` undoes it.

    Changes of the module are seen at the next call: of weights and buffers, in place or replaced, of its parts, hooks
    and adapters. Through `.data` in place, of which PyTorch knows nothing: at the next call if whole rows or columns of
    a weight change or if its parts together have at most 512 KiB, and after a pause (0.2 s for each 100 MB of
    weights); fewer numbers within 64 calls. `refresh` makes sure, and `verify` finds it.

    Raises TypeError for anything else, ValueError for the name of a pass that does not exist, and for an environment
    variable of fastdiff that holds what it may not.
    """
    arguments.flag("verify", verify)
    disable = arguments.names("disable", disable)
    if arguments.flag("progress", progress):
        show()
    environment.check()
    if is_pipeline(module):
        from fastdiff.integrations.diffusers import optimize_pipeline

        return optimize_pipeline(module, verify=verify, disable=disable)
    if not isinstance(module, nn.Module):
        raise TypeError(f"optimize() takes a torch.nn.Module or a pipeline of diffusers, got {type(module).__name__}")
    optimize_module(module, verify=verify, disable=[name for name in disable if name != "scheduler"])
    return module


def restore(module: Any) -> Any:
    """Undo `optimize`; returns the same object. Raises TypeError for what `optimize` does not take."""
    if is_pipeline(module):
        from fastdiff.integrations.diffusers import restore_pipeline

        return restore_pipeline(module)
    if not isinstance(module, nn.Module):
        raise TypeError(f"restore() takes what optimize() took, got {type(module).__name__}")
    restore_module(module)
    return module


def refresh(module: Any) -> Any:
    """Drop what was made of a model's weights, after a change that cannot be seen; returns the same object.

    module: a torch.nn.Module, optimized or not, or a pipeline of diffusers. Weights in other layouts, results that are
    kept for a prompt and CUDA graphs are made again when they are needed; captured graphs stay. Needed after writing
    few numbers through `weight.data` or another view that PyTorch does not count (NumPy, DLPack): see `optimize`.

    Raises TypeError for anything else.
    """
    if is_pipeline(module):
        from fastdiff.integrations.diffusers import refresh_pipeline

        return refresh_pipeline(module)
    if not isinstance(module, nn.Module):
        raise TypeError(f"refresh() takes a torch.nn.Module or a pipeline of diffusers, got {type(module).__name__}")
    refresh_module(module)
    return module


def is_pipeline(x: Any) -> bool:
    """Whether this is a pipeline of diffusers, which is not imported if nobody did."""
    pipelines = sys.modules.get("diffusers.pipelines.pipeline_utils")
    return pipelines is not None and isinstance(x, pipelines.DiffusionPipeline)
