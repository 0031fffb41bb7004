"""Predictor-corrector samplers: Song et al. 2021, Score-Based Generative Modeling through SDEs (Score SDE).

One function serves all of them, with other defaults.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from fastdiff.errors import expect, unknown
from fastdiff.process.schedules import VariancePreserving
from fastdiff.program.transforms import per_sample, transform
from fastdiff.solvers.registry import solver

SOURCE = "Song et al. 2021, Score SDE"


@solver(name="euler-maruyama", order=1, source=f"{SOURCE}, Eq. 6, Euler-Maruyama", predictor="euler-maruyama")
@solver(
    name="reverse-diffusion", order=1, source=f"{SOURCE}, Eq. 46, Algorithms 2 and 3", predictor="reverse-diffusion"
)
@solver(name="ancestral-sampling", order=1, source=f"{SOURCE}, Eq. 4 and 47", predictor="ancestral-sampling")
@solver(
    name="predictor-corrector",
    order=0,
    evaluations=2,
    source=f"{SOURCE}, Algorithms 2 and 3",
    predictor="reverse-diffusion",
    corrector="langevin",
)
def predictor_corrector(
    model,
    x,
    s,
    t,
    history,
    *,
    predictor="reverse-diffusion",
    corrector="none",
    snr=0.16,
    n_steps_each=1,
    norm="sample",
    probability_flow=False,
    discretization="grid",
    denoise=True,
    noise,
):
    """Corrections at the level of s (Langevin dynamics on p_s), then a prediction from s to t.

    predictor: "euler-maruyama", "reverse-diffusion", "ancestral-sampling" or "none". corrector: "langevin", "ald"
    (annealed Langevin dynamics) or "none", n_steps_each times a step, with the signal-to-noise ratio snr. norm: what
    the length of a "langevin" step is taken from: "sample", the norms of each sample's own score and noise, so that a
    sample does not depend on its batch; or "batch", their means over the batch, as published.

    probability_flow: half of the score and no noise in the prediction, which then solves the ODE. discretization:
    "grid": steps are the intervals of the grid, with the transitions of the forward process between their ends, and the
    step to the data returns x0. "released": as in the authors' code, every step is t_max / N long, whatever the N
    intervals of the grid; reverse diffusion and ancestral sampling take beta and sigma from tables of N values; and the
    last step ends with the mean of the prediction or, with denoise=False, with its noise.

    Every prediction requests a draw, whether or not it is used. The predictors are of order 1 in distribution; the
    error of a corrector does not vanish with more steps.
    """
    move = transition(model, s, t, discretization)
    x = corrected(model, x, s, move, corrector, snr=snr, n_steps_each=n_steps_each, norm=norm, noise=noise)
    to_data = t.sigma == 0 and discretization == "grid"
    if predictor == "none":
        return model.x0(x, s) if to_data else x
    z = noise()
    if to_data:
        return model.x0(x, s)
    mean, std = predicted(model, x, s, t, move, predictor, probability_flow, discretization)
    last = model.steps_left == 1 and discretization == "released" and denoise
    return mean if probability_flow or last else mean + std * z


def transition(model, s, t, discretization):
    """Of the forward process x_s = ratio x_t + sqrt(variance) z: ratio, variance, and the share of the variance that
    is left in the posterior of x_t given the data."""
    if discretization not in ("grid", "released"):
        raise unknown("discretization", discretization, ("grid", "released"))
    return (_released if discretization == "released" else _between)(model, s, t)


def corrected(model, x, s, move, corrector, *, snr, n_steps_each, norm, noise):
    """The state after the corrections at the level of s. move: that of `transition`."""
    expect(n_steps_each >= 1, f"n_steps_each must be >= 1, got {n_steps_each!r}")
    ratio = move[0]
    for _ in range(n_steps_each if corrector != "none" else 0):
        score, z = model.score(x, s), noise()
        if corrector == "langevin":  # Algorithms 4 and 5
            x = x + model.apply("langevin_step", score, z, snr=float(snr), alpha=ratio**2, norm=norm)
        elif corrector == "ald":
            length = 2 * ratio**2 * (snr * s.sigma) ** 2
            x = x + length * score + sqrt(2 * length) * z
        else:
            raise unknown("corrector", corrector, ("none", "langevin", "ald"))
    return x


def predicted(model, x, s, t, move, predictor, probability_flow=False, discretization="grid"):
    """(mean, standard deviation) of the state at t."""
    ratio, variance, kept = move
    half = 0.5 if probability_flow else 1.0
    if predictor == "euler-maruyama":
        h = model.schedule.t_max / model.steps if discretization == "released" else s.t - t.t
        f, variance = (h * rate for rate in model.schedule.drift_diffusion(s.t))
        return (1 - f) * x + half * variance * model.score(x, s), sqrt(variance)
    if predictor == "reverse-diffusion":
        return (2 - ratio) * x + half * variance * model.score(x, s), sqrt(variance)
    if predictor == "ancestral-sampling":
        expect(not probability_flow, "ancestral-sampling is not a solver of the ODE: probability_flow must be False")
        mean = (x + variance * model.score(x, s)) / ratio
        return mean, sqrt(variance) if isinstance(model.schedule, VariancePreserving) else sqrt(variance * kept)
    raise unknown("predictor", predictor, ("none", "euler-maruyama", "reverse-diffusion", "ancestral-sampling"))


def _between(model, s, t):
    """Of the continuous process between two points."""
    ratio = s.alpha / t.alpha
    return ratio, (s.sigma - ratio * t.sigma) * (s.sigma + ratio * t.sigma), (t.sigma / s.sigma) ** 2


def _released(model, s, t):
    """The same of the released tables: with u_i = i / (N - 1) beta_i is beta(u_i) / N, sigma_i is sigma(u_i) and
    sigma_{-1} = 0. A schedule that is neither variance-preserving nor exploding has no table; its transition is that of
    Euler-Maruyama."""
    schedule, n = model.schedule, model.steps
    i = int(s.t / schedule.t_max * (n - 1))
    u = schedule.t_max * i / max(n - 1, 1)
    if isinstance(schedule, VariancePreserving):
        beta = -2 * schedule.log_alpha_rate(u) / n * schedule.t_max
        return sqrt(1 - beta), beta, 1.0
    if s.alpha == 1 and t.alpha == 1:
        low = float(schedule.sigma(schedule.t_max * (i - 1) / (n - 1))) if i > 1 else schedule.sigma_min
        sigma, low = (float(schedule.sigma(u)), low) if i > 0 else (schedule.sigma_min, 0.0)
        return 1.0, (sigma - low) * (sigma + low), (low / sigma) ** 2
    f, diffusion = (schedule.t_max / n * rate for rate in schedule.drift_diffusion(s.t))
    return 1 + f, diffusion, (t.sigma / s.sigma) ** 2


@transform
def langevin_step(score: Tensor, z: Tensor, *, snr: float, alpha: float, norm: str) -> Tensor:
    """eta score + sqrt(2 eta) z with eta = 2 alpha (snr |z| / |score|)^2 (Song et al. 2021, Algorithms 4 and 5). norm:
    "sample" or "batch", the only one that mixes samples: it takes the means of the norms over the batch."""
    if norm not in ("sample", "batch"):
        raise unknown("norm", norm, ("sample", "batch"))
    lengths = [torch.linalg.vector_norm(v.flatten(1), dim=1) for v in (z, score)]
    if norm == "batch":
        lengths = [length.mean().expand_as(length) for length in lengths]
    eta = per_sample(2 * alpha * (snr * lengths[0] / lengths[1]) ** 2, score)
    return eta * score + (2 * eta).sqrt() * z
