"""fastdiff: faster sampling from diffusion models, with the result unchanged to rounding."""

import sys

from fastdiff import models, ops, solvers
from fastdiff.cascading import Stage, cascade
from fastdiff.compiler.verify import verify
from fastdiff.editing import diffuse, encode
from fastdiff.errors import SamplingError, WeightsError
from fastdiff.explain import explain
from fastdiff.guidance import CFG, Classifier, Threshold
from fastdiff.likelihood import log_likelihood
from fastdiff.models import caching
from fastdiff.models.bundled import load
from fastdiff.optimizing import optimize, refresh, restore
from fastdiff.process import edm_table, grids, noise, prediction, schedules
from fastdiff.profiling import profile
from fastdiff.profiling.finding import find
from fastdiff.program import Program
from fastdiff.program.tracing import trace
from fastdiff.running import run
from fastdiff.runtime import memory
from fastdiff.runtime.choice import use
from fastdiff.sampling import sample

__version__ = "0.1.0"

# Modules by the names that users type, wherever they live: `fastdiff.schedules`, `from fastdiff.schedules import EDM`.
for _module in (caching, edm_table, grids, memory, noise, prediction, schedules):
    sys.modules[f"fastdiff.{_module.__name__.rpartition('.')[2]}"] = _module

__all__ = [
    "CFG",
    "Classifier",
    "Program",
    "SamplingError",
    "Stage",
    "Threshold",
    "WeightsError",
    "caching",
    "cascade",
    "diffuse",
    "edm_table",
    "encode",
    "explain",
    "find",
    "grids",
    "load",
    "log_likelihood",
    "memory",
    "models",
    "noise",
    "ops",
    "optimize",
    "prediction",
    "profile",
    "refresh",
    "restore",
    "run",
    "sample",
    "schedules",
    "solvers",
    "trace",
    "use",
    "verify",
]
