"""diffusers: schedulers whose steps run in one pass, and pipelines that run through the compiler."""

from fastdiff.integrations.diffusers.pipelines import (
    explain_schedulers,
    models,
    optimize_pipeline,
    refresh_pipeline,
    restore_pipeline,
)
from fastdiff.integrations.diffusers.schedulers import SolverScheduler, scheduler_for

__all__ = [
    "SolverScheduler",
    "explain_schedulers",
    "models",
    "optimize_pipeline",
    "refresh_pipeline",
    "restore_pipeline",
    "scheduler_for",
]
