"""A solver's step function run on tensors, without a Program: slow, and the definition that traced runs must match."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fastdiff.engine.inputs import Inputs
from fastdiff.guidance import Guidance, Threshold, gradients_of
from fastdiff.process.noise import CounterNoise, NoiseFunction
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
        inputs: Inputs,
        *,
        guidance: Guidance | None = None,
        threshold: Threshold | None = None,
    ) -> None:
        super().__init__(schedule, prediction, guidance, threshold)
        self.network, self.inputs = network, inputs
        self.calls = 0

    def close(self, x: Tensor) -> Tensor:
        return x

    def apply(self, function: str, *quantities: Tensor, **parameters: float | str) -> Tensor:
        return TRANSFORMS[function](*quantities, **parameters)

    def tensor(self, name: str) -> Tensor:
        if name not in self.inputs.tensors:
            raise ValueError(f"the solver reads the tensor {name!r}, and this run has {sorted(self.inputs.tensors)}")
        return self.inputs.tensors[name]

    def _call(self, x: Tensor, s: Point, guided: bool, variance: bool) -> tuple[Tensor, Tensor]:
        t = x.new_full((len(x),), self.prediction.time(self.schedule, s))
        self.calls += 1
        out = self.network(x, t, **self.inputs.cond)
        if self.prediction.split:
            out, self._learned = out.chunk(2, dim=1)
        if not guided:
            return out, out
        assert self.cfg is not None
        uncond = self.network(x, t, **self.inputs.uncond)
        if self.prediction.split:
            uncond = uncond.chunk(2, dim=1)[0]
        return uncond + self.cfg.single * (out - uncond), out

    def _variance(self) -> Tensor:
        return self._learned

    def _evaluate_gradient(self, name: str, x: Tensor, s: Point) -> Tensor:
        return self.inputs.gradients[name](x, x.new_full((len(x),), self.prediction.time(self.schedule, s)))


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
    guidance: Guidance | None = None,
    threshold: Threshold | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The sample that `solver` reaches from x along `times`.

    draw(number): the noises, in order; those of seed 0 if None. start: states after the first steps, taken instead of
    the solver's own, so that a multistep method can be tested with an exact history. The other arguments are those of
    `fastdiff.sample`.
    """
    gradients = {name: term.gradient for name, term in gradients_of(guidance).items()}
    inputs = Inputs(CounterNoise.of(0, len(x)), draw, cond or {}, uncond or {}, gradients, tensors=tensors or {})
    model = TensorModel(network, schedule, prediction, inputs, guidance=guidance, threshold=threshold)
    entries: deque = deque(maxlen=solver.history)
    drawn = 0

    def noise() -> Tensor:
        nonlocal drawn
        drawn += 1
        return inputs.noise(drawn - 1, x.shape, x.dtype, x.device)

    keywords = {"noise": noise} if solver.stochastic else {}
    model.grid = schedule.points(times)
    intervals = solver.intervals(model.grid)
    model.steps = len(intervals)
    for model.step, (s, *model.inner, t) in enumerate(intervals):
        x = solver.step(model, x, s, t, entries, **solver.options, **keywords)
        if model.step < len(start):
            x = start[model.step]
    return x
