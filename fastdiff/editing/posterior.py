"""Inverse problems by gradients through the network: DPS (Chung et al. 2023) and MCG (Chung et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.editing.blending import blended
from fastdiff.editing.differentiated import Differentiated, run_differentiated
from fastdiff.errors import expect, one_of, unknown
from fastdiff.process.noise import CounterNoise, Noise, Seed, fixed_seeds, given_noise
from fastdiff.process.schedules import Point
from fastdiff.solvers import Solver, get_solver

NOISES = ("gaussian", "squares", "poisson", "poisson-released")


def dps(
    model: Callable[..., Any],
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    scale: float | Callable[[Point, Point], float] = 1.0,
    measurement: str = "gaussian",
    perturbations: int = 0,
    project: bool = False,
    norm: str = "sample",
    seed: Seed = None,
    measurement_noise: Noise = None,
    distances: list[Tensor] | None = None,
    **others: Any,
) -> Tensor:
    """A picture x of which y = A x + noise was measured: Diffusion Posterior Sampling (Chung et al. 2023, Algorithms 1
    and 2). After each step of the solver, x := x - scale d/dx n(x), x0(x) being the network's estimate of the data.

    y: (B, ...), what operator(x0) gives; operator: A, any function that autograd can differentiate, such as those of
    `fastdiff.editing.operators`. like: a tensor of the pictures' shape, dtype and device. scale: a number, or a
    function of the step's two points (s, t). measurement: "gaussian": n = |y - A x0|; the paper's step length is
    zeta = scale / 2. "squares": n = |y - A x0|^2 / 2. "poisson": n = sum (y - A x0)^2 / (2 y), for y > 0.
    "poisson-released": |y - A x0| mean(1 / |y|), as in the authors' code. perturbations: if not 0, n is the mean over
    that many A(x0 + 0.05 u), u uniform in [0, 1) (`ps+` of the authors' code). project: then also
    x := x - lift(A x) + lift(alpha y + sigma z), at the level of the step's beginning, for an operator with a `lift`
    (`mcg` of the authors' code, right for AveragePooling). norm: over each "sample" or the whole "batch", as released;
    with "sample" no sample depends on others.
    measurement_noise: draws like y for `project`, instead of those from the seed. distances: a list that receives n of
    each step, (B,) or (). others: x_init, solver ("ddpm"; any with fixed steps), steps (100), schedule, prediction,
    grid, guidance, threshold, cond, uncond, first_sample, noise and callback, as in `fastdiff.sample`.

    Returns (B, ...), like `like`. Raises TypeError or ValueError before the run for what does not fit, SamplingError
    if the model fails or something is not finite.
    """
    like, scale = arguments.state("like", like), scale if callable(scale) else arguments.number("scale", scale)
    y = arguments.state("y", y)
    one_of("measurement", measurement, NOISES)
    _check_norm(norm)
    perturbations = arguments.whole("perturbations", perturbations, 0)
    dtype = torch.promote_types(like.dtype, torch.float32)
    y = y.to(dtype)
    expect(bool(torch.isfinite(y).all()), "y holds values that are NaN or infinite")
    expect(measurement != "poisson" or bool((y > 0).all()), "y must be positive for Poisson noise")
    if not callable(operator):
        raise TypeError(f"operator must be a function of pictures, got {arguments.described(operator)}")
    expect(not project or hasattr(operator, "lift"), f"project needs an operator with a lift, got {operator!r}")
    with torch.no_grad():
        seen = operator(torch.zeros(like.shape, dtype=dtype, device=like.device))
    expect(seen.shape == y.shape, f"operator gives {tuple(seen.shape)}, y is {tuple(y.shape)}")
    seed = fixed_seeds(seed, len(like))
    counter = CounterNoise.of(seed, len(like), others.get("first_sample", 0))
    draw = given_noise(measurement_noise, y.shape, dtype, y.device)

    def length(x0: Tensor) -> Tensor:
        residual = y - operator(x0)
        if measurement == "squares":
            return _over(norm, residual).square().sum(-1) / 2
        if measurement == "poisson":
            return _over(norm, residual.square() / (2 * y)).sum(-1)
        n = torch.linalg.vector_norm(_over(norm, residual), dim=-1)
        return n * _over(norm, 1 / y.abs()).mean(-1) if measurement == "poisson-released" else n

    def after(step: Differentiated, x: Tensor, s: Point, t: Point, noise: Callable[[], Tensor]) -> Tensor:
        shifts: list[Any] = [0.05 * (0.5 + 0.5 * torch.erf(noise() / 2**0.5)) for _ in range(perturbations)] or [0.0]
        gradient, n = step.gradient(lambda x0: torch.stack([length(x0 + shift) for shift in shifts]).mean(0))
        if distances is not None:
            distances.append(n)
        x = x - (arguments.number("scale", scale(s, t)) if callable(scale) else scale) * gradient
        if project:
            lift = operator.lift  # type: ignore[attr-defined]
            number = (1 << 30) + step.step  # far from the solver's own draws
            z = draw(step.step) if draw is not None else counter.draw(number, y.shape, dtype).to(y.device)
            x = x - lift(operator(x)) + lift(s.alpha * y + s.sigma * z)
        return x

    return run_differentiated("dps", model, like, after, seed=seed, **others)


@dataclass(frozen=True)
class MCG:
    """What `mcg` returns."""

    solver: Solver
    scale: float
    level: str
    norm: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"mcg, {self.solver.name}"

    def run(self, model: Callable[..., Any], x_init: Tensor, known: Tensor, mask: Tensor, **others: Any) -> Tensor:
        """The filled picture, (B, ...) like x_init, the noise. known: the picture. mask: 1 where it is known. others:
        as in `dps`."""

        def after(step: Differentiated, x: Tensor, s: Point, t: Point, noise: Callable[[], Tensor]) -> Tensor:
            length = lambda x0: torch.linalg.vector_norm(_over(self.norm, mask * (known - x0)), dim=-1)  # noqa: E731
            gradient, _ = step.gradient(length)
            return blended(step, x - self.scale * gradient, s if self.level == "start" else t, noise)

        return run_differentiated(
            "mcg",
            model,
            x_init,
            after,
            x_init=x_init,
            solver=self.solver,
            tensors={"known": known, "mask": mask},
            **others,
        )


def mcg(solver: Solver | str = "ddpm", *, scale: float = 1.0, level: str = "end", norm: str = "sample") -> MCG:
    """Manifold constrained gradients, a method of `fastdiff.editing.inpaint`: MCG (Chung et al. 2022, Algorithm 1).
    After each step of the solver, x := (1 - mask) (x - scale d/dx |mask (picture - x0(x))|)
    + mask (alpha picture + sigma z).

    solver: any with fixed steps. level: of the known part: "end", that of the state that it is put into, so that a run
    to the data keeps it to the last bit; "start", that of the step's beginning, as in HJ-harry/MCG_diffusion, which
    leaves the noise of the last step on it. norm: over each "sample" or the whole "batch", as released. Its steps have
    gradients through the network and run in PyTorch; `fastdiff.sample` does not take it. Raises TypeError or ValueError
    for what these are not.
    """
    if level not in ("start", "end"):
        raise unknown("level", level, ("start", "end"))
    _check_norm(norm)
    method = get_solver(solver)
    expect(not method.adaptive, f"mcg needs a solver with fixed steps, and {method.name!r} chooses its own")
    return MCG(method, arguments.number("scale", scale), level, norm)


def _over(norm: str, values: Tensor) -> Tensor:
    """(B, n), or (B n,) for a norm over the batch."""
    return values.flatten(1) if norm == "sample" else values.flatten()


def _check_norm(norm: str) -> None:
    if norm not in ("sample", "batch"):
        raise unknown("norm", norm, ("sample", "batch"))
