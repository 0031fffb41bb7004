"""Annealed Langevin dynamics: Song & Ermon 2019, Generative Modeling by Estimating Gradients of the Data (NCSN)."""

from __future__ import annotations

from math import sqrt

from fastdiff.errors import expect
from fastdiff.solvers.registry import solver


@solver(
    order=0,
    evaluations=5,
    grid="logsnr",
    source="Song & Ermon 2019, NCSN, Algorithm 1; denoise: Jolicoeur-Martineau et al. 2021",
)
def annealed_langevin(model, x, s, t, history, *, step_size=0.2, n_steps=5, denoise=True, noise):
    """n_steps of Langevin dynamics at the level of s, each of the length step_size sigma_s^2.

    The levels are the points of the grid but the data. step_size must be below 4; the paper's epsilon is step_size
    sigma_L^2 with the last level sigma_L (2e-5 and 0.01 there, with 100 steps a level). denoise: end with x0, which is
    one more call of the network. Made for schedules with alpha = 1; on others the state is scaled to alpha of the next
    level. evaluations are those of n_steps = 5.
    """
    expect(0 < step_size < 4, f"step_size must lie in (0, 4), got {step_size!r}")
    expect(n_steps >= 1, f"n_steps must be >= 1, got {n_steps!r}")
    length = step_size * s.sigma**2
    for _ in range(n_steps):
        x = x + length / 2 * model.score(x, s) + sqrt(length) * noise()
    if t.sigma == 0 and denoise:
        return model.x0(x, s)
    return t.alpha / s.alpha * x
