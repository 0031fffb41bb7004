"""Pictures: what is no picture is refused, decoded ones are in range."""

import re

import numpy as np
import pytest
import torch
from small_network import Net

from fastdiff import pictures
from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL
from fastdiff.models.ldm import LatentDiffusion

SHAPE = (2, 3, 8, 8)
X = torch.zeros(SHAPE)
WRONG = (TypeError, ValueError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: pictures.save_png(pictures.grid(X, 1), path), "save_png takes the path, then the pixels"),
        (lambda path: pictures.save_png(path, X), "as pictures.grid(samples, columns) gives, got a tensor"),
        (lambda path: pictures.save_png(path, np.zeros((4, 4, 3))), "got a NumPy array float64 (4, 4, 3)"),
        (lambda path: pictures.save_png(path, np.zeros((4, 4), np.uint8)), "pixels must be (H, W, 3) uint8"),
        (lambda path: pictures.save_png(path, pictures.grid(X, 1), zoom=0), "zoom must be a whole number >= 1"),
        (lambda path: pictures.grid(X, 0), "columns must be a whole number >= 1"),
        (lambda path: pictures.grid(X.numpy(), 2), "pictures must be a tensor (B, 3, H, W)"),
        (lambda path: pictures.grid(X[0], 2), "pictures must be (B, 3, H, W), got (3, 8, 8)"),
    ],
)
def test_pictures(tmp_path, call, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        call(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def latent_model():
    torch.manual_seed(0)
    config = AutoencoderConfig(
        ch=32, out_ch=3, in_channels=3, z_channels=4, num_res_blocks=1, ch_mult=(1, 2), embed_dim=4
    )
    return LatentDiffusion(Net(), AutoencoderKL(config), 0.5)


def test_decoded_pictures_are_in_range():
    model = latent_model()
    z = 100 * torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw, x = model.autoencoder.decode(z / 0.5), model.decode(z)
    assert raw.abs().max() > 1
    assert torch.equal(x, raw.clamp(-1, 1))


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 4, 4), (2, 4, 16), (2, 4, 4, 4, 4)])
def test_latents_of_another_shape(shape):
    with pytest.raises(ValueError, match=re.escape(f"z must be (B, 4, h, w), got {shape}")):
        latent_model().decode(torch.zeros(shape))
