"""diffusers: schedulers over the project's solvers, and pipelines that run through the backend."""

from fastdiff.integrations.diffusers.pipelines import optimize_pipeline, restore_pipeline
from fastdiff.integrations.diffusers.schedulers import SolverScheduler, scheduler_for

__all__ = ["SolverScheduler", "optimize_pipeline", "restore_pipeline", "scheduler_for"]
