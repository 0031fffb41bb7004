"""Imagen (Saharia et al. 2022): its U-Nets, as imagen-pytorch has them."""

from fastdiff.models.imagen.config import ImagenConfig
from fastdiff.models.imagen.prediction import of_log_snr
from fastdiff.models.imagen.unet import ImagenUNet

__all__ = ["ImagenConfig", "ImagenUNet", "of_log_snr"]
