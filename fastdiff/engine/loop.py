"""Running a Program: by the engine that fits, and on a GPU as a captured graph where that can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.engine import recorded
from fastdiff.engine.bound import Bound, Callback, choose_engine
from fastdiff.engine.inputs import Inputs
from fastdiff.program import Program
from fastdiff.runtime import runs


@torch.no_grad()
@runs.one()
def run(
    program: Program, model: Callable[..., Any], x: Tensor, inputs: Inputs, callback: Callback | None = None
) -> Tensor:
    """Run a Program from the state x and return the sample, in x's shape and dtype.

    model(x, t, **cond) gets x (B, ...) in x's dtype and t (B,); in guided calls cond and uncond go in together as one
    batch of 2B. States and times are float32 where x is of a half precision, which has no room for 999. callback(step,
    state) follows every step of a program that keeps its states. Raises SamplingError, naming the step, if the model
    returns another shape or a value that is not finite, or raises an exception itself, and ValueError
    if the program calls a gradient that is not among the inputs.
    """
    engine = choose_engine(program, x)
    if engine == "device" and callback is None:
        return recorded.run(program, model, x, inputs)
    bound = Bound(engine, program, model, x, inputs)
    bound.start(x, inputs)
    bound.loop(callback)
    return bound.finish()
