"""Reconstruction guidance: Ho et al. 2022, Video Diffusion Models, Section 3.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.editing.stepping import Conditions, Draws, take_steps
from fastdiff.engine.adaptive import CheckedModel
from fastdiff.errors import SamplingError, expect
from fastdiff.guidance import cfg_of, gradients_of, make_guidance
from fastdiff.models.info import resolve
from fastdiff.process.grids import Grid, make_grid
from fastdiff.process.noise import CounterNoise, Noise, Seed
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Float64Array, Point, Schedule
from fastdiff.running import make_inputs
from fastdiff.runtime.dispatcher import differentiable
from fastdiff.solvers import Solver, get_solver

Seen = Callable[[Tensor, Tensor], None]


@torch.inference_mode(False)
def reconstruct(
    model: Callable[..., Any],
    x: Tensor,
    known: Tensor,
    *,
    mask: Tensor | None = None,
    operator: Callable[[Tensor], Tensor] | None = None,
    weight: float = 2.0,
    replace: bool = False,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    solver: Solver | str = "ddpm",
    steps: int = 50,
    grid: str | Grid | Float64Array | None = None,
    guidance: Any = None,
    cond: Conditions = None,
    uncond: Conditions = None,
    seed: Seed = None,
    noise: Noise = None,
    seen: Seen | None = None,
) -> Tensor:
    """Samples of which a part is known, such as frames of a video, or a smaller version: (B, ...) like x.

    Every x0 of the model becomes x0 - weight alpha / 2 G on what is not known, with G the gradient of |known - A x0|^2
    with respect to the state (Eq. 7), through the model.

    x: (B, ...), the state at the grid's first time. known: with a mask, like x, and A takes the entries where the mask,
    broadcast to x, is 1; with an operator, a differentiable function of x0, what it should give (Eq. 8,
    super-resolution), and all entries change. replace: known entries are also noised to each time and put into the
    state, the replacement method of Section 3.1, so that the result has them; without it they are approximate. grid:
    times as of `fastdiff.sample`. solver: any but adaptive ones. noise: the draws in order, the replacement's at the
    start, then in each step the solver's and the replacement's. seen(x0, G): after each call. The other arguments are
    those of `fastdiff.sample`. Raises ValueError for arguments that do not fit, SamplingError for a model that fails.
    """
    x = differentiable(arguments.state("x", x)).detach()
    arguments.beside_model("x", x, model)
    schedule, prediction = resolve(model, schedule, prediction)
    method, guidance = get_solver(solver), make_guidance(guidance)
    expect(not method.adaptive, f"solver {method.name!r} chooses its own steps; take one like 'ddpm' or 'ddim'")
    expect((mask is None) != (operator is None), "either mask or operator must be given")
    replace = arguments.flag("replace", replace)
    if operator is not None and not callable(operator):
        raise TypeError(f"operator must be a function of pictures, got {arguments.described(operator)}")
    expect(not replace or mask is not None, "replace needs a mask, of the entries that are known")
    expect(cfg_of(guidance) is None or uncond is not None, "guidance needs uncond")
    weight = arguments.number("weight", weight)
    known = differentiable(arguments.state("known", known)).to(x)
    where = _entries(mask, x, known)
    if operator is not None:
        made = operator(x)
        expect(
            isinstance(made, Tensor) and made.shape == known.shape,
            f"the operator makes {arguments.described(made)} of x, and known is {tuple(known.shape)}",
        )
    gradients = {name: term.gradient for name, term in gradients_of(guidance).items()}
    counter = CounterNoise.of(seed, len(x))
    inputs = make_inputs(x, counter, noise, cond, uncond if cfg_of(guidance) is not None else None, gradients)
    measure = operator if where is None else lambda x0: torch.where(where, x0, 0)
    assert measure is not None
    target = known if where is None else torch.where(where, known, 0)
    checked = _Guided(method.name, model, schedule, prediction, x, inputs, guidance=guidance)
    checked.measure, checked.target, checked.where_known, checked.weight = measure, target, where, weight
    checked.seen = seen
    times = make_grid(grid if grid is not None else schedule.grid or method.grid, schedule, steps)
    checked.grid = schedule.points(times)
    return _run(method, checked, x, known if replace else None)


def _run(method: Solver, model: _Guided, x: Tensor, known: Tensor | None) -> Tensor:
    def replaced(model: _Guided, x: Tensor, s: Point, t: Point, noise: Callable[[], Tensor]) -> Tensor:
        if known is None or model.where_known is None:
            return x
        return torch.where(model.where_known, t.alpha * known + t.sigma * noise(), x)

    noise, first = Draws(model.inputs, x), model.grid[0]
    with torch.no_grad():
        return take_steps(method, model, replaced(model, x, first, first, noise), noise, replaced)


def _entries(mask: Tensor | None, x: Tensor, known: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {arguments.described(mask)}")
    expect(known.shape == x.shape, f"known must be like x, {tuple(x.shape)}, got {tuple(known.shape)}")
    fits = mask.ndim <= x.ndim and all(m in (1, n) for m, n in zip(mask.shape[::-1], x.shape[::-1]))
    expect(fits, f"mask must be broadcast to x {tuple(x.shape)}, got {tuple(mask.shape)}")
    expect(bool(((mask == 0) | (mask == 1)).all()), "mask must hold 0 and 1, 1 where the sample is known")
    expect(not bool((mask == 1).all()), "mask is 1 everywhere, so that there is nothing to sample")
    return (mask == 1).expand_as(x).to(x.device)


class _Guided(CheckedModel):
    """Every x0 is guided, and eps follows from it."""

    measure: Callable[[Tensor], Tensor]
    target: Tensor
    where_known: Tensor | None
    weight: float
    seen: Seen | None

    def x0(self, x: Tensor, s: Point) -> Tensor:
        return self.x0_eps(x, s)[0]

    def eps(self, x: Tensor, s: Point) -> Tensor:
        return self.x0_eps(x, s)[1]

    def velocity(self, x: Tensor, s: Point) -> Tensor:
        d_alpha, d_sigma = self.schedule.rates(s.t)
        x0, eps = self.x0_eps(x, s)
        return d_alpha * x0 + d_sigma * eps

    def x0_eps(self, x: Tensor, s: Point, *, classifier: bool = True) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            x0, _ = super().x0_eps(z, s, classifier=classifier)
        return self._guided(x, x0, z, s)

    def x0_eps_variance(self, x: Tensor, s: Point, *, classifier: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            x0, _, variance = super().x0_eps_variance(z, s, classifier=classifier)
        return *self._guided(x, x0, z, s), variance.detach()

    def _checked(
        self, network: Callable[..., Any], name: str, x: Tensor, s: Point, conditions: Mapping[str, Any]
    ) -> Tensor:
        out = super()._checked(network, name, x, s, conditions)
        if name == "model" and not out.requires_grad:  # G would silently miss the model's part
            raise SamplingError(f"{self.where(s)}: the {name} has no gradient with respect to x (torch.no_grad in it?)")
        return out

    def _guided(self, x: Tensor, x0: Tensor, z: Tensor, s: Point) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            loss = (self.target - self.measure(x0)).square().sum()
            if not loss.requires_grad:
                raise SamplingError(f"{self.where(s)}: the operator has no gradient (torch.no_grad in it?)")
            (gradient,) = torch.autograd.grad(loss, z)
        own = x0.detach()
        x0 = own - self.weight * s.alpha / 2 * gradient
        if self.where_known is not None:  # Eq. 7 is of the unknown part
            x0 = torch.where(self.where_known, own, x0)
        if self.seen is not None:
            self.seen(x0, gradient)
        return x0, (x - s.alpha * x0) / s.sigma
