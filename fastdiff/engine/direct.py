"""A solver's step function run on tensors, without a Program: slow, and the definition that traced runs must match."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from fastdiff.guidance.classifier_free import CFG
from fastdiff.noise import NoiseFunction
from fastdiff.prediction import Prediction
from fastdiff.schedules import Float64Array, Point, Schedule
from fastdiff.solvers.registry import Solver


class _Model:
    """The `model` of a step function: converts what the network returns to x0 or eps."""

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        prediction: Prediction,
        guidance: CFG | None,
        cond: Mapping[str, Any],
        uncond: Mapping[str, Any],
    ) -> None:
        self.network, self.schedule, self.prediction, self.guidance = network, schedule, prediction, guidance
        self.cond, self.uncond = cond, uncond

    def x0(self, x: Tensor, s: Point) -> Tensor:
        a, b = self.prediction.x0(s)
        return a * x + b * self._output(x, s)

    def eps(self, x: Tensor, s: Point) -> Tensor:
        a, b = self.prediction.eps(s)
        return a * x + b * self._output(x, s)

    def at_lam(self, lam: float) -> Point:
        return self.schedule.point(float(self.schedule.t_of_lam(lam)))

    def _output(self, x: Tensor, s: Point) -> Tensor:
        t = x.new_full((len(x),), self.schedule.model_time(s.t))
        out = self.network(x, t, **self.cond)
        if self.guidance is None or not self.guidance.active(s):
            return out
        uncond = self.network(x, t, **self.uncond)
        return uncond + self.guidance.scale * (out - uncond)


def integrate(
    solver: Solver,
    network: Callable[..., Tensor],
    x: Tensor,
    schedule: Schedule,
    times: Sequence[float] | Float64Array,
    prediction: Prediction,
    *,
    guidance: CFG | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    draw: NoiseFunction | None = None,
) -> Tensor:
    """The sample that `solver` reaches from x along `times`. draw(number) gives the noises, in order."""
    model = _Model(network, schedule, prediction, guidance, cond or {}, uncond or {})
    points = schedule.points(times)
    history: deque = deque(maxlen=solver.history)
    drawn = 0

    def noise() -> Tensor:
        nonlocal drawn
        assert draw is not None, "a stochastic solver needs noise"
        drawn += 1
        return draw(drawn - 1)

    keywords = {"noise": noise} if solver.stochastic else {}
    for s, t in pairwise(points):
        x = solver.step(model, x, s, t, history, **solver.options, **keywords)
    return x
