"""fastdiff: fast sampling from diffusion models, with proof that the answer is unchanged."""

from fastdiff import caching, edm_table, grids, memory, models, ops, schedules, solvers
from fastdiff.backend.optimize import optimize, restore
from fastdiff.backend.verify import verify
from fastdiff.backends import use
from fastdiff.editing import diffuse, encode
from fastdiff.errors import SamplingError, WeightsError
from fastdiff.explain import explain
from fastdiff.guidance import CFG, Classifier, Threshold
from fastdiff.likelihood import log_likelihood
from fastdiff.models.bundled import load
from fastdiff.profiling import profile
from fastdiff.sampling import sample

__version__ = "0.1.0"

__all__ = [
    "CFG",
    "Classifier",
    "SamplingError",
    "Threshold",
    "WeightsError",
    "caching",
    "diffuse",
    "edm_table",
    "encode",
    "explain",
    "grids",
    "load",
    "log_likelihood",
    "memory",
    "models",
    "ops",
    "optimize",
    "profile",
    "restore",
    "sample",
    "schedules",
    "solvers",
    "use",
    "verify",
]
