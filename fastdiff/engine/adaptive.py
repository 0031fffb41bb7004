"""Runs of solvers that choose their own steps: on tensors, without a Program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.calls import call_network, join
from fastdiff.engine.direct import TensorModel
from fastdiff.engine.inputs import Inputs
from fastdiff.engine.loop import Callback
from fastdiff.errors import SamplingError
from fastdiff.guidance import Guidance, Threshold
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Float64Array, Point, Schedule
from fastdiff.runtime import runs
from fastdiff.solvers.registry import Solver

OVERFLOW = "the state overflowed, though the model's output is finite"


@torch.no_grad()
@runs.one()
def run_adaptive(
    solver: Solver,
    model: Callable[..., Any],
    x: Tensor,
    schedule: Schedule,
    times: Float64Array,
    prediction: Prediction,
    inputs: Inputs,
    *,
    guidance: Guidance | None = None,
    threshold: Threshold | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """The sample that an adaptive solver reaches from x, in x's shape and dtype.

    times: the solver takes its own between the first and the last one; where the last is the data, it goes down to the
    schedule's t_min, or to the last time but one if that is earlier, and from there to the data in one step. callback:
    after every step that is accepted. Raises SamplingError, naming the step and its time, for what the model must not
    return, and if the tolerance is not met within the solver's max_steps.
    """
    start, *inner, last = times.tolist()
    to_data = last == 0
    end = min([schedule.t_min, *inner]) if to_data else last
    state = x.to(torch.promote_types(x.dtype, torch.float32))
    checked = CheckedModel(solver.name, model, schedule, prediction, x, inputs, guidance=guidance, threshold=threshold)
    number = -1

    def noise() -> Tensor:
        nonlocal number
        number += 1
        return inputs.noise(number, state.shape, state.dtype, state.device)

    s = schedule.point(start)
    if start > end:
        keywords = {"noise": noise} if solver.stochastic else {}
        attempts = solver.step(checked, state, s, schedule.point(end), **solver.options, **keywords)
        try:
            for state, t in attempts:
                if t != s:  # not a rejected attempt
                    if callback is not None:
                        callback(checked.step, state)
                    s, checked.step = t, checked.step + 1
        except OverflowError as error:
            raise SamplingError(f"{checked.where(s)}: {OVERFLOW}") from error
        except ZeroDivisionError as error:
            if (reason := prediction.silent(s)) is not None:
                raise ValueError(reason) from error
            raise ValueError(f"solver {solver.name!r} cannot step from t={s.t:g} of {schedule.name}") from error
        if s.t != end:
            raise SamplingError(
                f"{solver.name} does not reach t={end:.6g} within its tolerance in max_steps="
                f"{solver.options['max_steps']} steps: it is at t={s.t:.6g}"
            )
    if to_data:
        state = checked.x0(state, s)
        if callback is not None:
            callback(checked.step, state)
    return state.to(x.dtype)


class CheckedModel(TensorModel):
    """A TensorModel for users' networks: guided calls are one batch of 2B, in the dtype of the user's state `x`, and
    what comes back is checked. Raises SamplingError that names the solver, the step and the time."""

    def __init__(
        self,
        solver: str,
        network: Callable[..., Any],
        schedule: Schedule,
        prediction: Prediction,
        x: Tensor,
        inputs: Inputs,
        **options: Any,
    ) -> None:
        super().__init__(network, schedule, prediction, inputs, **options)
        self.solver, self.dtype = solver, x.dtype
        if not torch.isfinite(x).all():
            raise SamplingError("the initial state holds values that are NaN or infinite")
        self.batch = len(x)
        self.change(inputs)

    def change(self, inputs: Inputs) -> None:
        """Calls from now on have these conditions."""
        self.inputs = inputs
        self.both = join(inputs.cond, inputs.uncond, self.batch) if self.cfg is not None else {}

    def where(self, s: Point) -> str:
        """For messages."""
        return f"{self.solver}, step {self.step + 1} (t={s.t:.6g})"

    def _call(self, x: Tensor, s: Point, guided: bool, variance: bool) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if guided and self.both is not None:
            out = self._checked(self.network, "model", torch.cat([x, x]), s, self.both)
        else:
            out = self._checked(self.network, "model", x, s, self.inputs.cond)
            if guided:
                with runs.branch("uncond"):
                    uncond = self._checked(self.network, "model", x, s, self.inputs.uncond)
                out = torch.cat([out, uncond])
        if self.prediction.split:
            out, learned = out.chunk(2, dim=1)
            self._learned = learned[: len(x)]
        if not guided:
            return out, out
        assert self.cfg is not None
        out, uncond = out.chunk(2)
        return uncond + self.cfg.single * (out - uncond), out

    def _evaluate_gradient(self, name: str, x: Tensor, s: Point) -> Tensor:
        return self._checked(self.inputs.gradients[name], name, x, s, {})

    def _checked(
        self, network: Callable[..., Any], name: str, x: Tensor, s: Point, conditions: Mapping[str, Any]
    ) -> Tensor:
        if not torch.isfinite(x).all():
            raise SamplingError(f"{self.where(s)}: {OVERFLOW}")
        t = x.new_full((len(x),), self.prediction.time(self.schedule, s))
        twice = self.prediction.split and name == "model"
        shape = torch.Size((len(x), (2 if twice else 1) * x.shape[1], *x.shape[2:])) if twice else x.shape
        out = call_network(network, name, x.to(self.dtype), t, conditions, shape, x.dtype, lambda: self.where(s))
        bad = int((~torch.isfinite(out)).sum())
        if bad:
            raise SamplingError(f"{self.where(s)}: the {name} returned {bad} values that are NaN or infinite")
        return out
