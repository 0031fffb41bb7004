"""How far pictures are from those they should be, picture by picture."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.errors import expect

Float64Array = NDArray[np.float64]


def rmse(pictures: Tensor, reference: Tensor) -> Float64Array:
    """(B,) root of the mean squared difference of each picture; (B, ...) in [-1, 1]."""
    _check(pictures, reference)
    return (pictures.double() - reference.double()).square().flatten(1).mean(1).sqrt().cpu().numpy()


def psnr(error: Float64Array) -> Float64Array:
    """Decibels from the RMSE of pictures in [-1, 1]: 20 log10(2 / rmse); infinite where the error is 0."""
    with np.errstate(divide="ignore"):
        return 20 * np.log10(2 / error)


def ssim(pictures: Tensor, reference: Tensor) -> Float64Array:
    """(B,) structural similarity (Wang et al. 2004, Eq. 13; scikit-image's, 7 x 7 windows), (B, C, H, W) in [-1, 1].

    NaN where the pictures are smaller than a window. Raises ImportError without scikit-image.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ImportError(f"SSIM needs scikit-image: pip install torch-fastdiff[profile] ({error})") from error
    _check(pictures, reference)
    if min(pictures.shape[-2:]) < 7:
        return np.full(len(pictures), np.nan)
    # Intensities must not be negative: the factor that compares means would change its sign with them.
    a, b = (t.detach().clamp(-1, 1).add(1).div(2).double().cpu().numpy() for t in (pictures, reference))
    return np.array([structural_similarity(x, y, data_range=1.0, channel_axis=0) for x, y in zip(a, b)])


def rms(values: Float64Array) -> float:
    """Of the pictures' RMSE: the RMSE over all pixels of all pictures."""
    return float(np.sqrt(np.mean(np.square(values))))


def _check(pictures: Tensor, reference: Tensor) -> None:
    expect(
        pictures.shape == reference.shape and pictures.ndim >= 2,
        f"pictures and reference must be alike, (B, ...), got {tuple(pictures.shape)} and {tuple(reference.shape)}",
    )
    expect(bool(torch.isfinite(reference).all()), "the reference is not finite")
