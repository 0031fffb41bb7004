"""A U-Net for videos whose attention alternates between pixels and frames. Ho et al. 2022, Video Diffusion Models."""

from fastdiff.models.video_unet.network import Unet3D, Unet3DConfig

__all__ = ["Unet3D", "Unet3DConfig"]
