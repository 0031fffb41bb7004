"""What a step function sees as `model`: the same formulas on tensors and on symbols."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

from fastdiff.errors import expect
from fastdiff.guidance import Guidance, Threshold, cfg_of, gradients_of
from fastdiff.process.prediction import Coefficients, Prediction
from fastdiff.process.schedules import Point, Schedule


class StepModel(ABC):
    """The network behind a schedule, a prediction type and guidance. Quantities (states, x0, eps, noise) are tensors
    (B, ...) or linear forms; step functions may add, subtract and scale them.

    steps: how many the run has, step: the index of the one in hand. inner: the grid's points strictly between its ends,
    for solvers that span several intervals of the grid in one step. grid: all points of the run. denoised: what a step
    does to every x0 before it is limited, or None.
    """

    step: int = 0
    steps: int = 0
    inner: Sequence[Point] = ()
    grid: Sequence[Point] = ()
    denoised: Callable[[Any], Any] | None = None

    def __init__(
        self, schedule: Schedule, prediction: Prediction, guidance: Guidance | None, threshold: Threshold | None
    ) -> None:
        self.schedule, self.prediction, self.threshold = schedule, prediction, threshold
        self.cfg = cfg_of(guidance)
        self.classifier = gradients_of(guidance) or None  # by name
        self._difference: Any = None  # what guidance last added to the conditional output
        self._difference_step = 0  # and at which step

    @property
    def _is_plain(self) -> bool:
        """Whether x0 and eps are linear in x and the output."""
        return self.threshold is None and self.classifier is None and self.denoised is None

    # ---- for step functions

    def x0(self, x: Any, s: Point) -> Any:
        """The data that the network sees in x."""
        if not self._is_plain:
            return self.x0_eps(x, s)[0]
        return self._view(self.prediction.x0(s), *self._evaluate(x, s))

    def eps(self, x: Any, s: Point) -> Any:
        """The noise that the network sees in x."""
        if not self._is_plain:
            return self.x0_eps(x, s)[1]
        return self._view(self.prediction.eps(s), *self._evaluate(x, s))

    def score(self, x: Any, s: Point) -> Any:
        """The gradient of log p_s(x), -eps / sigma."""
        return self.eps(x, s) * (-1 / s.sigma)

    def velocity(self, x: Any, s: Point) -> Any:
        """dx/dt of the probability-flow ODE, d_alpha x0 + d_sigma eps; needs no division by alpha or sigma."""
        d_alpha, d_sigma = self.schedule.rates(s.t)
        if not self._is_plain:
            x0, eps = self.x0_eps(x, s)
            return d_alpha * x0 + d_sigma * eps
        (a0, b0), (a1, b1) = self.prediction.x0(s), self.prediction.eps(s)
        return self._view((d_alpha * a0 + d_sigma * a1, d_alpha * b0 + d_sigma * b1), *self._evaluate(x, s))

    def x0_eps(self, x: Any, s: Point, *, classifier: bool = True) -> tuple[Any, Any]:
        """Both from one call of the network. classifier=False leaves the classifier's gradient out."""
        return self._views(*self._evaluate(x, s), s, classifier)

    def x0_eps_variance(self, x: Any, s: Point, *, classifier: bool = True) -> tuple[Any, Any, Any]:
        """Also the second half of the output's channels, of a network that has learned a variance."""
        expect(
            self.prediction.split,
            f"a learned variance needs a prediction like 'eps+variance', not {self.prediction.name!r}",
        )
        x, out = self._evaluate(x, s, variance=True)
        variance = self._variance()
        return *self._views(x, out, s, classifier), variance

    def classifier_gradient(self, x: Any, s: Point) -> Any:
        """scale times the gradient of log p(y | x), where the guidance has a classifier, or the sum of what it has in
        its place; None where there is none."""
        if self.classifier is None:
            return None
        x = self.close(x)
        first, *others = (term.scale * self._evaluate_gradient(name, x, s) for name, term in self.classifier.items())
        return sum(others, start=first)

    def at_lam(self, lam: float) -> Point:
        """The schedule's point where log(alpha / sigma) is `lam`."""
        if isnan(lam):  # between -inf, where alpha is 0, and a number
            raise ZeroDivisionError("lambda is not finite")
        return self.schedule.point(float(self.schedule.t_of_lam(lam)))

    def at(self, t: float) -> Point:
        """The schedule's point at time t."""
        return self.schedule.point(t)

    @property
    def steps_left(self) -> int:
        """How many steps the run still has, the one in hand included."""
        return self.steps - self.step

    @property
    def noisy_steps_left(self) -> int:
        """The same without a last step to the data."""
        return self.steps_left - (len(self.grid) > 0 and self.grid[-1].sigma == 0)

    @abstractmethod
    def apply(self, function: str, *quantities: Any, **parameters: float | str) -> Any:
        """A function in `fastdiff.program.transforms.TRANSFORMS` of these quantities."""

    @abstractmethod
    def tensor(self, name: str) -> Any:
        """The constant tensor of the run that has this name."""

    # ---- for tracers and engines

    @abstractmethod
    def close(self, x: Any) -> Any:
        """x as a quantity that is computed once."""

    @abstractmethod
    def _call(self, x: Any, s: Point, guided: bool, variance: bool) -> tuple[Any, Any]:
        """(output mixed by guidance, conditional output alone) of the network on x as it takes it."""

    @abstractmethod
    def _variance(self) -> Any:
        """The second half of the last call's output."""

    @abstractmethod
    def _evaluate_gradient(self, name: str, x: Any, s: Point) -> Any:
        """The gradient of that name."""

    def _evaluate(self, x: Any, s: Point, variance: bool = False) -> tuple[Any, Any]:
        """(x, the guided output)."""
        scale = self.prediction.scale(s)
        if scale == 1:
            x = u = self.close(x)
        else:  # the network's input is what is kept; x is taken from it
            u = self.close(scale * x)
            x = u / scale
        if self.cfg is None or not self.cfg.active(s):
            return x, self._call(u, s, False, variance)[0]
        age = self.step - self._difference_step
        fresh = self._difference is None or age == 0 or age >= self.cfg.every
        out, conditional = self._call(u, s, fresh, variance)
        if not fresh:
            out = conditional + self._difference
        elif self.cfg.every > 1:
            self._difference, self._difference_step = self.close(out - conditional), self.step
        if self.cfg.rescale:
            out = self.apply("rescale_guidance", out, conditional, share=float(self.cfg.rescale))
        return x, out

    def _view(self, coefficients: Coefficients, x: Any, out: Any) -> Any:
        a, b = coefficients
        return self.close(a * x + b * out if a else b * out)

    def _views(self, x: Any, out: Any, s: Point, classifier: bool) -> tuple[Any, Any]:
        x0, eps = self._view(self.prediction.x0(s), x, out), self._view(self.prediction.eps(s), x, out)
        if self.denoised is not None or self.threshold is not None:
            if self.denoised is not None:
                x0 = self.denoised(x0)
            if self.threshold is not None:
                x0 = self.apply(self.threshold.function, x0, **self.threshold.parameters())
            eps = (x - s.alpha * x0) / s.sigma
        gradient = self.classifier_gradient(x, s) if classifier else None
        if gradient is not None:  # Dhariwal & Nichol 2021, Algorithm 2; of a limited x0, as released
            eps = eps - s.sigma * gradient
            x0 = x0 + s.sigma**2 / s.alpha * gradient
        return self.close(x0), self.close(eps)
