"""`fastdiff.optimize`, `refresh` and `restore`: of a module, or of a pipeline of diffusers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastdiff import arguments
from fastdiff.compiler.optimize import optimize_module, refresh_module, restore_module
from fastdiff.compiler.precision import wanted
from fastdiff.runtime import environment
from fastdiff.runtime.reuse import Caching
from fastdiff.runtime.telling import show


def optimize(
    module: Any,
    *,
    verify: bool = False,
    disable: Sequence[str] = (),
    progress: bool = False,
    precision: str = "float32",
    keep_float32: Sequence[str] = (),
    reuse: Caching | str | None = None,
) -> Any:
    """Make a model run through fastdiff's compiler; returns the same object.

    module: a torch.nn.Module, or a pipeline of diffusers: all its networks but those of transformers, and its
    schedulers where a step can run in one pass (disable=["scheduler"] leaves them; `explain(pipe)` says which). A
    module's parameters, state_dict, hooks and signature stay. verify: compare the first call with the original, and go
    back to it with a warning if they differ. disable: names of passes to leave out. progress: say on stderr when a
    model is being captured, which takes seconds at the first call; the logger "fastdiff" has it at the level INFO
    whether it is shown or not. precision: of the linear layers of a float32 model on a CPU, "float32", "bf16" or "int8"
    ([lower precision](optimize.md#lower-precision)). keep_float32: names of parts of the model, with `*`, that stay in
    float32 all the same. reuse: take part of a call's result from earlier calls of the same run, which changes the
    answer: such as "deep:2" for U-Nets, "blocks:t=0.1" for transformers, see `fastdiff.caching.Caching`; of a pipeline,
    for its denoisers. Where a gradient is wanted the original runs. `restore` undoes it.

    Changes of the module are seen at the next call: of weights and buffers, in place or replaced, of its parts, hooks
    and adapters. Through `.data` in place, of which PyTorch knows nothing: at the next call if whole rows or columns of
    a weight change or if its parts together have at most 512 KiB, and after a pause (0.2 s for each 100 MB of
    weights); fewer numbers within 64 calls. `refresh` makes sure, and `verify` finds it.

    Raises TypeError for anything else, ValueError for the name of a pass, precision or part that does not exist, for a
    precision that the model or its device cannot have, for a rule of reuse that cannot be, and for an environment
    variable of fastdiff that holds what it may not.
    """
    arguments.flag("verify", verify)
    disable, keep_float32 = arguments.names("disable", disable), arguments.names("keep_float32", keep_float32)
    if arguments.flag("progress", progress):
        show()
    rule = None if reuse is None else Caching.of("reuse", reuse)
    environment.check()
    if is_pipeline(module):
        from fastdiff.integrations.diffusers import optimize_pipeline

        return optimize_pipeline(
            module, verify=verify, disable=disable, precision=precision, keep_float32=keep_float32, reuse=rule
        )
    if not isinstance(module, nn.Module):
        raise TypeError(f"optimize() takes a torch.nn.Module or a pipeline of diffusers, got {type(module).__name__}")
    passes = [name for name in disable if name != "scheduler"]
    low = wanted([module], precision, keep_float32)
    optimize_module(module, verify=verify, disable=passes, precision=low, reuse=rule)
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
