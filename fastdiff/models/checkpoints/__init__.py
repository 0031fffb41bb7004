"""Checkpoints in the layouts of the models' authors: one file a layout, each of which joins `load` when imported."""

from fastdiff.models.checkpoints import (
    controlnet,
    diffusers_autoencoder,
    diffusers_controlnet,
    diffusers_dit,
    diffusers_prior,
    diffusers_unclip,
    diffusers_unet,
    dit,
    edm,
    glide,
    guided_diffusion,
    latent_diffusion,
    latent_diffusion_autoencoder,
    sit,
    uvit,
)
from fastdiff.models.checkpoints.loading import layouts, load, on_meta

__all__ = [
    "controlnet",
    "diffusers_autoencoder",
    "diffusers_controlnet",
    "diffusers_dit",
    "diffusers_prior",
    "diffusers_unclip",
    "diffusers_unet",
    "dit",
    "edm",
    "glide",
    "guided_diffusion",
    "latent_diffusion",
    "latent_diffusion_autoencoder",
    "layouts",
    "load",
    "on_meta",
    "sit",
    "uvit",
]
