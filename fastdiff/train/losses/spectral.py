"""What slim networks need: gated wavelets and a distillation weighted by frequency (Yang et al. 2023, Diffusion
Probabilistic Model Made Slim)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.train.terms import sum_d


def haar(x: Tensor) -> Tensor:
    """(B, C, H, W) to its bands LL, LH, HL, HH, (B, 4, C, H/2, W/2). Raises ValueError for odd sizes."""
    expect(x.shape[-1] % 2 == 0 and x.shape[-2] % 2 == 0, f"the sides must be even, got {tuple(x.shape[-2:])}")
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], 1) / 2


def inverse_haar(bands: Tensor) -> Tensor:
    """The inverse of `haar`: (B, 4, C, H, W) to (B, C, 2H, 2W)."""
    ll, lh, hl, hh = bands.unbind(1)
    top = torch.stack([ll + lh + hl + hh, ll - lh + hl - hh], -1).flatten(-2)
    bottom = torch.stack([ll + lh - hl - hh, ll - lh - hl + hh], -1).flatten(-2)
    return torch.stack([top, bottom], -2).flatten(-3, -2) / 2


class WaveletGating(nn.Module):
    """Down- or upsampling by Haar wavelets whose bands a gate weighs (Yang et al. 2023, Section 4.1).

    up: False: (B, C, H, W) to (B, C, H/2, W/2), the gated sum of the bands. True: (B, 4 C, H, W), band by band, to
    (B, C, 2H, 2W). gate: sigmoid(weight avgpool(x) + bias), (B, 4, C).
    """

    def __init__(self, channels: int, *, up: bool = False) -> None:
        super().__init__()
        self.up = up
        self.linear = nn.Linear(4 * channels if up else channels, 4 * channels)

    def gate(self, x: Tensor) -> Tensor:
        """(B, 4, C)."""
        return self.linear(x.mean((-2, -1))).sigmoid().unflatten(1, (4, -1))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)[..., None, None]
        if self.up:
            return inverse_haar(gate * x.unflatten(1, (4, -1)))
        return (gate * haar(x)).sum(1)


class SpectralTerms(NamedTuple):
    """Of each sample, (B,); weight: (B, C, H, W)."""

    loss: Tensor
    ddpm: Tensor
    spatial: Tensor
    frequency: Tensor
    weight: Tensor


def spectral_loss(
    student: Tensor,
    teacher: Tensor,
    x0: Tensor,
    noise: Tensor,
    *,
    noise_student: Tensor | None = None,
    alpha: float = -1.0,
    norm: str = "ortho",
    spatial: float = 0.1,
    frequency: float = 0.1,
) -> SpectralTerms:
    """The student's error of the noise, its distance from the teacher, and that of their spectra, in which a frequency
    counts with |F(x0)|^alpha, so that rare ones count more (Yang et al. 2023, Section 4.2, Eq. 9).

    student, teacher: outputs (B, C, H, W), of the teacher without gradient. noise_student: the student's prediction of
    the noise, `student` itself unless given. norm: of the transform, as in torch.fft. spatial, frequency: weights.
    """
    teacher = teacher.detach()
    weight = torch.fft.fft2(x0, norm=norm).abs() ** alpha
    ddpm = sum_d((noise - (student if noise_student is None else noise_student)).square())
    near = sum_d((teacher - student).square())
    spectrum = torch.fft.fft2(teacher, norm=norm) - torch.fft.fft2(student, norm=norm)
    far = sum_d(weight * (spectrum.real.square() + spectrum.imag.square()))
    return SpectralTerms(ddpm + spatial * near + frequency * far, ddpm, near, far, weight)
