"""Variational diffusion models with learned schedules (Kingma et al. 2021)."""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.process.schedules import Float64Array, VariancePreserving
from fastdiff.train.terms import Network, full, normal, rows, sum_d


class Gamma(Protocol):
    """gamma(t) = -log SNR, increasing in t in [0, 1]: (B,) to (B,)."""

    def __call__(self, t: Tensor) -> Tensor: ...


class FixedGamma(nn.Module):
    """gamma_min + (gamma_max - gamma_min) t."""

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0) -> None:
        super().__init__()
        self.gamma_min, self.gamma_max = gamma_min, gamma_max

    def forward(self, t: Tensor) -> Tensor:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t


class ScalarGamma(nn.Module):
    """b + |w| t with learned w and b, (1,) each (Kingma et al. 2021, Appendix H)."""

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([float(gamma_max - gamma_min)]))
        self.b = nn.Parameter(torch.tensor([float(gamma_min)]))

    def forward(self, t: Tensor) -> Tensor:
        return self.b + self.w.abs() * t


class MonotoneGamma(nn.Module):
    """b1 + |k1| t + mean_j |k3_j| (2 sigmoid(|k2_j| 2 (t - 1/2) + b2_j) - 1): a network that increases in t (Kingma et
    al. 2021, Appendix H). k1 (1, 1), b1 (1,), k2 (1, hidden), b2 (hidden,), k3 (hidden, 1)."""

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, *, hidden: int = 1024) -> None:
        super().__init__()
        self.k1 = nn.Parameter(torch.tensor([[float(gamma_max - gamma_min)]]))
        self.b1 = nn.Parameter(torch.tensor([float(gamma_min)]))
        self.k2, self.b2 = nn.Parameter(torch.randn(1, hidden)), nn.Parameter(torch.zeros(hidden))
        self.k3 = nn.Parameter(0.01 * torch.randn(hidden, 1))

    def forward(self, t: Tensor) -> Tensor:
        inner = (self.k2.abs() * 2 * (t[:, None] - 0.5) + self.b2).sigmoid()
        return self.b1 + self.k1[0].abs() * t + ((2 * inner - 1) @ self.k3.abs())[:, 0] / self.k3.shape[0]


class Learned(VariancePreserving):
    """A learned gamma as a schedule to sample on: log SNR = -gamma(t), t in (0, 1], and t = 0 is the data.

    gamma: as it is now; it is evaluated on 10,001 times and interpolated. The network receives gamma. Raises ValueError
    for a gamma that does not increase.
    """

    name = "learned"

    def __init__(self, gamma: Gamma, *, t_min: float = 1e-3, device: torch.device | str = "cpu") -> None:
        knots = np.linspace(0.0, 1.0, 10_001)
        with torch.no_grad():
            values = gamma(torch.from_numpy(knots).to(device)).double().cpu().numpy()
        expect(bool((np.diff(values) > 0).all()), "gamma must increase with t")
        self._t, self._gamma = knots, values
        self.t_min, self.t_max = t_min, 1.0

    def log_alpha(self, t: ArrayLike) -> Float64Array:
        t = np.asarray(t, dtype=np.float64)
        value = -0.5 * np.logaddexp(0.0, np.interp(t, self._t, self._gamma))
        return np.where(t > 0, value, 0.0)

    def sigma(self, t: ArrayLike) -> Float64Array:
        t = np.asarray(t, dtype=np.float64)
        value = np.exp(-0.5 * np.logaddexp(0.0, -np.interp(t, self._t, self._gamma)))
        return np.where(t > 0, value, 0.0)

    def t_of_lam(self, lam: ArrayLike) -> Float64Array:
        return np.asarray(np.interp(-2 * np.asarray(lam, dtype=np.float64), self._gamma, self._t))

    def t_of_log_alpha(self, log_alpha: ArrayLike) -> Float64Array:
        with np.errstate(divide="ignore"):
            gamma = np.log(np.expm1(-2 * np.asarray(log_alpha, dtype=np.float64)))
        return np.asarray(np.interp(gamma, self._gamma, self._t))

    def log_alpha_rate(self, t: float) -> float:
        k = min(max(int(np.searchsorted(self._t, t)), 1), len(self._t) - 1)
        slope = (self._gamma[k] - self._gamma[k - 1]) / (self._t[k] - self._t[k - 1])
        return -0.5 * float(self.sigma(t)) ** 2 * float(slope)

    def model_time(self, t: float) -> float:
        return -2 * float(self.lam(t))


class VariationalTerms(NamedTuple):
    """In nats, of each sample, (B,). t: the times; gamma: there."""

    reconstruction: Tensor
    prior: Tensor
    diffusion: Tensor
    t: Tensor
    gamma: Tensor

    def bits_per_dim(self, dimensions: int) -> Tensor:
        """(B,)."""
        return (self.reconstruction + self.prior + self.diffusion) / (dimensions * log(2))


def variational_times(u: Tensor, batch: int, *, steps: int = 0, antithetic: bool = True) -> Tensor:
    """(batch,) times in [0, 1]: u itself, (batch,), or with antithetic (u + j / batch) mod 1 of one number u; rounded
    up to a multiple of 1 / steps unless that is 0 (Kingma et al. 2021, Appendix I)."""
    t = (u + torch.arange(batch, dtype=torch.float64) / batch) % 1 if antithetic else u
    return (t * steps).ceil() / steps if steps else t


def variational_terms(
    network: Network,
    gamma: Gamma,
    batch: Tensor,
    generator: torch.Generator,
    *,
    vocabulary: int = 256,
    steps: int = 0,
    times: Tensor | None = None,
    noise: Tensor | None = None,
    noise_0: Tensor | None = None,
    **cond: Any,
) -> VariationalTerms:
    """The three terms of the bound (Kingma et al. 2021, Eq. 10 to 15); gradients reach gamma through all of them.

    network: (z, gamma) -> the noise. batch: x, integers 0 .. vocabulary - 1, (B, ...). steps: T; 0 is continuous time.
    times: (B,), see `variational_times`, drawn unless given; noise, noise_0 (of the reconstruction): like x, drawn
    unless given.
    """
    dtype = noise.dtype if noise is not None else torch.get_default_dtype()
    f = 2 * (batch.to(dtype) + 0.5) / vocabulary - 1
    noise = normal(f, generator, noise)
    noise_0 = normal(f, generator) if noise_0 is None else noise_0
    if times is None:
        times = variational_times(torch.rand((), generator=generator, dtype=torch.float64), len(f), steps=steps)
    t = times.to(f)
    g0, g1 = gamma(torch.zeros_like(t[:1])), gamma(torch.ones_like(t[:1]))

    values = 2 * (torch.arange(vocabulary, dtype=dtype, device=f.device) + 0.5) / vocabulary - 1
    z0 = f + (0.5 * g0).exp().view(-1, *[1] * (f.ndim - 1)) * noise_0
    logits = -0.5 * (-g0).exp() * (z0[..., None] - values).square()
    chosen = logits.log_softmax(-1).gather(-1, batch.long()[..., None])[..., 0]

    s1 = g1.sigmoid().view(-1, *[1] * (f.ndim - 1))
    prior = 0.5 * sum_d((1 - s1) * f.square() + s1 - s1.log() - 1)

    with torch.enable_grad():
        at = t.detach().requires_grad_()
        g = gamma(at)
        slope = torch.autograd.grad(g.sum(), at, create_graph=True)[0]
    g_rows = rows(g, f)
    z = (-g_rows).sigmoid().sqrt() * f + g_rows.sigmoid().sqrt() * noise
    error = sum_d((noise - full(network(z, g, **cond))).square())
    factor = steps * torch.expm1(g - gamma(t - 1 / steps)) if steps else slope
    return VariationalTerms(-sum_d(chosen), prior, 0.5 * factor * error, times, g)


def variational_loss(
    network: Network, gamma: Gamma, batch: Tensor, generator: torch.Generator, **options: Any
) -> Tensor:
    """The negative variational bound in bits per dimension, of each sample, (B,), see `variational_terms`. `Learned` is
    the schedule to sample on."""
    return variational_terms(network, gamma, batch, generator, **options).bits_per_dim(batch[0].numel())
