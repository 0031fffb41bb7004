"""Engines do the combines of a Program on its buffers; the loop in `fastdiff.engine.loop` calls the model. Adaptive
solvers, whose times are not known before the run, have no Program: `fastdiff.engine.adaptive`."""

from fastdiff.engine.adaptive import run_adaptive
from fastdiff.engine.inputs import Inputs
from fastdiff.engine.loop import run

__all__ = ["Inputs", "run", "run_adaptive"]
