"""A solver's step function run on tensors, without a Program: slow, and the definition that traced runs must match."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fastdiff.guidance import Guidance, Threshold
from fastdiff.process.noise import NoiseFunction
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Float64Array, Point, Schedule
from fastdiff.program.transforms import TRANSFORMS
from fastdiff.solvers.interface import StepModel
from fastdiff.solvers.registry import Solver


class TensorModel(StepModel):
    """The `model` of a step function that runs on tensors. calls: how often the network was called."""

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        prediction: Prediction,
        *,
        guidance: Guidance | None = None,
        threshold: Threshold | None = None,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(schedule, prediction, guidance, threshold)
        self.network, self.cond, self.uncond = network, cond or {}, uncond or {}
        self.calls = 0

    def close(self, x: Tensor) -> Tensor:
        return x

    def apply(self, function: str, *quantities: Tensor, **parameters: float | str) -> Tensor:
        return TRANSFORMS[function](*quantities, **parameters)

    def _call(self, x: Tensor, s: Point, guided: bool, variance: bool) -> tuple[Tensor, Tensor]:
        t = x.new_full((len(x),), self.prediction.time(self.schedule, s))
        self.calls += 1
        out = self.network(x, t, **self.cond)
        if self.prediction.split:
            out, self._learned = out.chunk(2, dim=1)
        if not guided:
            return out, out
        assert self.cfg is not None
        uncond = self.network(x, t, **self.uncond)
        if self.prediction.split:
            uncond = uncond.chunk(2, dim=1)[0]
        return uncond + self.cfg.scale * (out - uncond), out

    def _variance(self) -> Tensor:
        return self._learned

    def _evaluate_classifier(self, x: Tensor, s: Point) -> Tensor:
        assert self.classifier is not None
        return self.classifier.gradient(x, x.new_full((len(x),), self.prediction.time(self.schedule, s)))


def integrate(
    solver: Solver,
    network: Callable[..., Tensor],
    x: Tensor,
    schedule: Schedule,
    times: Sequence[float] | Float64Array,
    prediction: Prediction,
    *,
    draw: NoiseFunction | None = None,
    start: Sequence[Tensor] = (),
    **options: Any,
) -> Tensor:
    """The sample that `solver` reaches from x along `times`.

    draw(number): the noises, in order. start: states after the first steps, taken instead of the solver's own, so that
    a multistep method can be tested with an exact history. options: those of TensorModel.
    """
    model = TensorModel(network, schedule, prediction, **options)
    entries: deque = deque(maxlen=solver.history)
    drawn = 0

    def noise() -> Tensor:
        nonlocal drawn
        assert draw is not None, "a stochastic solver needs noise"
        drawn += 1
        return draw(drawn - 1)

    keywords = {"noise": noise} if solver.stochastic else {}
    model.grid = schedule.points(times)
    intervals = solver.intervals(model.grid)
    model.steps = len(intervals)
    for model.step, (s, *model.inner, t) in enumerate(intervals):
        x = solver.step(model, x, s, t, entries, **solver.options, **keywords)
        if model.step < len(start):
            x = start[model.step]
    return x
