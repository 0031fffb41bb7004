"""DDPM: Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models."""

from __future__ import annotations

from math import log

from torch import Tensor

from fastdiff.errors import unknown
from fastdiff.program.transforms import transform
from fastdiff.solvers.ddim import ancestral_sigma
from fastdiff.solvers.registry import solver


@solver(order=1, history=1, grid="linspace", source="Ho et al. 2020, DDPM, Eq. 7 and Algorithm 2")
def ddpm(model, x, s, t, history, *, variance="small", noise):
    """Ancestral sampling: the mean of q(x_t | x_s, x0) and noise of variance beta-tilde ("small"), beta ("large"), or
    what the network has learned between the two ("learned": Nichol & Dhariwal 2021, Eq. 15; its prediction is
    "eps+variance").

    On any grid the process is the respaced one (Nichol & Dhariwal 2021, Section 4): its alpha ratio is that of s and t.
    A classifier shifts the mean by variance times gradient (Dhariwal & Nichol 2021, Algorithm 1).
    """
    if variance not in ("small", "large", "learned"):
        raise unknown("variance", variance, ("small", "large", "learned"))
    if variance == "learned":
        x0, _, learned = model.x0_eps_variance(x, s, classifier=False)
    else:
        x0, _ = model.x0_eps(x, s, classifier=False)
    ratio = s.alpha / t.alpha  # sqrt(1 - beta) of the step from t to s
    beta = s.sigma**2 - (ratio * t.sigma) ** 2
    mean = (t.alpha * beta * x0 + ratio * t.sigma**2 * x) / s.sigma**2
    small = ancestral_sigma(s, t) ** 2
    floor = small or (history[-1] if history else beta)  # 0 in the step to the data: there, that of the step before
    history.append(small)

    if variance == "learned":

        def spread(y, power):
            return model.apply("between_variances", learned, y, low=log(floor), high=log(beta), power=power)
    else:
        fixed = small if variance == "small" else beta if t.sigma > 0 else floor

        def spread(y, power):
            return fixed**power * y

    gradient = model.classifier_gradient(x, s)
    if gradient is not None:
        mean = mean + spread(gradient, 1.0)
    return mean + spread(noise(), 0.5) if t.sigma > 0 else mean


@transform
def between_variances(learned: Tensor, y: Tensor, *, low: float, high: float, power: float) -> Tensor:
    """y times the variance to `power`; its logarithm goes from `low` at learned = -1 to `high` at 1."""
    share = (learned + 1) / 2
    return y * (power * (share * high + (1 - share) * low)).exp()
