"""Sampling from consistency models: Song et al. 2023, Consistency Models."""

from __future__ import annotations

from math import sqrt

from fastdiff.solvers.registry import solver


@solver(order=0, grid="karras", source="Song et al. 2023, Consistency Models, Algorithm 1")
def consistency(model, x, s, t, history, *, noise):
    """The network's x0, and noise up to the level of t: a network that maps every state of a trajectory to its end
    needs few steps, or one.

    The network's answer is taken to have the noise of the schedule's t_min, so that t^2 - t_min^2 is added in variance
    (in the ratio rho = sigma / alpha for other schedules than EDM's). Every step requests a draw. It does not solve the
    ODE: more steps do not converge to a sample.
    """
    z, least = noise(), model.at(model.schedule.t_min)
    rho, rho_min = t.sigma / t.alpha, least.sigma / least.alpha
    x0 = t.alpha * model.x0(x, s)
    return x0 + t.alpha * sqrt((rho - rho_min) * (rho + rho_min)) * z if rho > rho_min else x0
