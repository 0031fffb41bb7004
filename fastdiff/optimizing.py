"""`fastdiff.optimize` and `fastdiff.restore`: of a module, or of a pipeline of diffusers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastdiff.compiler.optimize import optimize_module, restore_module


def optimize(module: Any, *, verify: bool = False, disable: Sequence[str] = ()) -> Any:
    """Make a model run through fastdiff's compiler; returns the same object.

    module: a torch.nn.Module, or a pipeline of diffusers: all its networks but those of transformers, and its
    schedulers where a step can run in one pass (disable=["scheduler"] leaves them; `explain(pipe)` says which). A
    module's parameters, state_dict,
    hooks and signature stay; changes of its weights are seen at the next call. verify: compare the first call with the
    original, and go back to it with a warning if they differ. disable: names of passes to leave out. Where a gradient
    is wanted the original runs. `restore` undoes it.

    Raises TypeError for anything else, ValueError for the name of a pass that does not exist.
    """
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


def is_pipeline(x: Any) -> bool:
    """Whether this is a pipeline of diffusers, which is not imported if nobody did."""
    pipelines = sys.modules.get("diffusers.pipelines.pipeline_utils")
    return pipelines is not None and isinstance(x, pipelines.DiffusionPipeline)
