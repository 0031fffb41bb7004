"""Pictures from files and into files: as a viewer shows them, whole or not at all, wrong ones refused."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
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


def gradient(height, width):
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 0 * x], -1).astype(np.uint8)


def test_a_picture_comes_back_with_its_bits():
    pixels = gradient(8, 8)
    pictures.save_png("a.png", pixels)
    found = pictures.load_square("a.png", 8)
    assert found.shape == (3, 8, 8)
    assert np.array_equal(pictures.to_uint8(found[None])[0], pixels)


def test_a_photo_is_upright():
    """Cameras store how they were held; 6 is a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient(20, 40)).save("photo.png", exif=exif)
    found = pictures.load_pixels("photo.png")
    assert found.shape == (40, 20, 3)
    assert np.array_equal(found, np.rot90(gradient(20, 40), -1))


def test_what_is_transparent_is_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255
    Image.fromarray(rgba).save("a.png")
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save("b.png", transparency=1)
    assert pictures.load_pixels("a.png").mean((1, 2)).tolist() == [0, 0, 255, 255]
    assert pictures.load_pixels("b.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_sixteen_bits_are_scaled_and_not_cut():
    levels = np.array([[0, 257 * 100, 65535]], np.uint16)
    Image.fromarray(levels).save("a.png")
    assert pictures.load_pixels("a.png")[0, :, 1].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    ("shape", "box"), [((4, 4), (2, 0, 6, 4)), ((8, 4), (3, 0, 5, 4)), ((1, 8), (0, 1, 8, 2)), ((2, 3), (1, 0, 7, 4))]
)
def test_the_largest_middle_part_of_a_shape(shape, box):
    assert pictures.middle_box(4, 8, *shape) == box
    assert pictures.middle(gradient(4, 8), *shape).shape == (3, *shape)


def test_no_file_is_written_if_one_cannot_be(tmp_path):
    pixels = pictures.grid(torch.zeros(1, 3, 4, 4), 1)
    with pytest.raises(OSError, match=r"cannot write nowhere.b\.png"):
        pictures.save_pngs({"a.png": pixels, "nowhere/b.png": pixels})
    assert list(tmp_path.iterdir()) == []
    pictures.save_pngs({"a.png": pixels, "b.png": pixels}, zoom=2)
    assert Image.open("a.png").size == Image.open("b.png").size == (16, 16)
