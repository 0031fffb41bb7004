"""The U-Nets of lucidrains/denoising-diffusion-pytorch: for pictures, for sequences, with classes, and EDM2's."""

from fastdiff.models.ddp.config import ClassUnetConfig, Unet1DConfig, UnetConfig
from fastdiff.models.ddp.karras import KarrasUnet, KarrasUnetConfig
from fastdiff.models.ddp.unet import ClassUnet, Unet, Unet1D

__all__ = [
    "ClassUnet",
    "ClassUnetConfig",
    "KarrasUnet",
    "KarrasUnetConfig",
    "Unet",
    "Unet1D",
    "Unet1DConfig",
    "UnetConfig",
]
