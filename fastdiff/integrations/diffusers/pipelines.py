"""`fastdiff.optimize` of a pipeline: its denoiser, its decoder and, where ours takes the same steps, its scheduler."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastdiff.compiler.capture import check_passes
from fastdiff.compiler.optimize import optimize_module, restore_module
from fastdiff.integrations.diffusers.schedulers import SolverScheduler, scheduler_for

_DENOISERS = ("unet", "transformer", "prior")
_AUTOENCODERS = ("vae", "vqvae", "movq")
_schedulers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # of pipelines, before optimize


def models(pipeline: Any) -> dict[str, nn.Module]:
    """The modules of a pipeline that are worth it, by name."""
    found = {name: getattr(pipeline, name, None) for name in _DENOISERS}
    for name in _AUTOENCODERS:
        for part in ("encoder", "decoder"):
            found[f"{name}.{part}"] = getattr(getattr(pipeline, name, None), part, None)
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def optimize_pipeline(pipeline: Any, *, verify: bool = False, disable: Sequence[str] = ()) -> Any:
    """See `fastdiff.optimize`. Raises TypeError for a pipeline without a denoiser or autoencoder."""
    found = models(pipeline)
    if not found:
        raise TypeError(f"optimize() knows no module of {type(pipeline).__name__}: none of {', '.join(_DENOISERS)}")
    passes = [name for name in disable if name != "scheduler"]
    check_passes(passes)  # before any module is changed
    for module in found.values():
        optimize_module(module, verify=verify, disable=passes)
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is not None and "scheduler" not in disable and not isinstance(scheduler, SolverScheduler):
        ours, _ = scheduler_for(scheduler)
        if ours is not None:
            _schedulers[pipeline] = scheduler
            pipeline.scheduler = ours
    return pipeline


def restore_pipeline(pipeline: Any) -> Any:
    """See `fastdiff.restore`."""
    for module in models(pipeline).values():
        restore_module(module)
    if pipeline in _schedulers:
        pipeline.scheduler = _schedulers.pop(pipeline)
    return pipeline
