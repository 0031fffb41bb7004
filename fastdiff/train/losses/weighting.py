"""How much each noise level counts: weightings of the squared error of a network's output.

A weighting is a function of a Process and a Point that returns the factor of the squared error of the output, whatever
the network predicts. A factor that a paper gives for the error of x0 or of eps is made into one of the output's.
"""

from __future__ import annotations

from collections.abc import Callable

from fastdiff.errors import expect
from fastdiff.process.schedules import Point
from fastdiff.train.process import Process

Weighting = Callable[[Process, Point], float]


def of_eps(factor: Callable[[Point], float]) -> Weighting:
    """The weighting that is `factor` for the squared error of eps."""
    return lambda process, p: factor(p) * process.prediction.eps(p)[1] ** 2


def of_x0(factor: Callable[[Point], float]) -> Weighting:
    """The weighting that is `factor` for the squared error of x0."""
    return lambda process, p: factor(p) * process.prediction.x0(p)[1] ** 2


def plain(process: Process, p: Point) -> float:
    """1, but for a score, whose error counts with sigma^2 (Song et al. 2021, Score SDE, Section 3.3)."""
    return p.sigma**2 if process.prediction.name == "score" else 1.0


def snr(p: Point) -> float:
    """alpha^2 / sigma^2."""
    return (p.alpha / p.sigma) ** 2


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """(k + SNR)^-gamma of the output's error (Choi et al. 2022, Perception Prioritized Training, Eq. 8)."""
    return lambda process, p: (k + snr(p)) ** -gamma


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) of the error of x0 (Hang et al. 2023, Min-SNR, Section 3.4). Raises ValueError for gamma <= 0."""
    expect(gamma > 0, f"gamma must be positive, got {gamma!r}")
    return of_x0(lambda p: min(snr(p), gamma))


def likelihood(process: Process, p: Point) -> float:
    """g^2 of the score's error, for which the loss bounds the negative log-likelihood (Song et al. 2021, Maximum
    Likelihood Training of Score-Based Diffusion Models, Theorem 1)."""
    _, g2 = process.schedule.drift_diffusion(p.t)
    return g2 / p.sigma**2 * process.prediction.eps(p)[1] ** 2


def annealed(power: float = 2.0) -> Weighting:
    """sigma^power of the score's error (Song & Ermon 2019, NCSN, Eq. 6; power 2)."""
    return of_eps(lambda p: p.sigma ** (power - 2))


def edm(sigma_data: float = 0.5) -> Weighting:
    """(rho^2 + sigma_data^2) / (rho sigma_data)^2 of the error of x0, rho = sigma / alpha (Karras et al. 2022, EDM,
    Table 1)."""

    def factor(p: Point) -> float:
        rho = p.sigma / p.alpha
        return (rho**2 + sigma_data**2) / (rho * sigma_data) ** 2

    return of_x0(factor)
