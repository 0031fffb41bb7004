"""Denoisers of Karras et al. 2022, EDM: a network between input, output and skip scalings that depend on sigma (Eq. 7
and Table 1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Preconditioned(nn.Module):
    """`model(x, sigma, class_labels, augment_labels)` -> the denoised picture c_skip x + c_out F(c_in x; c_noise).

    x: (B, C, H, W), a picture with noise of standard deviation sigma, (B,), or a scalar for one of the batch.
    class_labels: (B, label_dim), one-hot; none is a zero vector. options: of the network's own. The scalings are in
    float32 (float64 for float64).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        sigma = sigma.to(precise).reshape(-1, 1, 1, 1)
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        out = self.network((c_in * x).to(x.dtype), c_noise.flatten(), class_labels, augment_labels, **options)
        return (c_skip * x + c_out * out[:, : x.shape[1]].to(precise)).to(x.dtype)  # the rest: a learned variance

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        """c_skip, c_out, c_in and c_noise for sigma (B, 1, 1, 1)."""
        raise NotImplementedError


class EDMPrecond(Preconditioned):
    """EDM's own choice (Table 1, last column). sigma_data: standard deviation of the data."""

    def __init__(self, network: nn.Module, *, sigma_data: float = 0.5) -> None:
        super().__init__(network)
        self.sigma_data = sigma_data

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        variance = sigma**2 + self.sigma_data**2
        return (
            self.sigma_data**2 / variance,
            sigma * self.sigma_data / variance.sqrt(),
            1 / variance.sqrt(),
            sigma.log() / 4,
        )


class VPPrecond(Preconditioned):
    """The variance-preserving models of Song et al. 2021 (Table 1, first column). M: steps of the discrete times."""

    def __init__(self, network: nn.Module, *, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000) -> None:
        super().__init__(network)
        self.beta_d, self.beta_min, self.M = beta_d, beta_min, M

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        log = (1 + sigma**2).log()
        t = ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() - self.beta_min) / self.beta_d  # sigma's inverse
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * t


class VEPrecond(Preconditioned):
    """The variance-exploding models of Song et al. 2021 (Table 1, second column)."""

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        return 1.0, sigma, 1.0, (0.5 * sigma).log()


class IDDPMPrecond(Preconditioned):
    """The models of Nichol & Dhariwal 2021 (Table 1, third column), which know M noise levels: the nearest is told."""

    def __init__(self, network: nn.Module, *, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> None:
        super().__init__(network)
        self.M = M
        alpha_bar = [math.sin(0.5 * math.pi * j / M / (C_2 + 1)) ** 2 for j in range(M + 1)]
        u = [0.0] * (M + 1)
        for j in range(M, 0, -1):
            u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], C_1) - 1)
        self.u: Tensor
        self.register_buffer("u", torch.tensor(u, dtype=torch.float32))

    def scalings(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        nearest = (sigma.reshape(-1, 1) - self.u.to(sigma)).abs().argmin(1)
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1 - nearest).to(sigma)


PRECONDITIONINGS = {cls.__name__: cls for cls in (EDMPrecond, VPPrecond, VEPrecond)} | {"iDDPMPrecond": IDDPMPrecond}
