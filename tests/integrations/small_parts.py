"""Small parts of pipelines of diffusers, with random weights."""

from __future__ import annotations

import diffusers
import torch

# Of U-Nets and of ControlNets.
BLOCKS = dict(block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=12, attention_head_dim=4,
              norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))  # fmt: skip


def randomized(model, seed=0):
    """No weight is zero or one, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def vae():
    return randomized(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
        )
    )  # fmt: skip


def unet(**options):
    torch.manual_seed(0)
    up = ("UpBlock2D", "CrossAttnUpBlock2D")
    return randomized(diffusers.UNet2DConditionModel(sample_size=8, up_block_types=up, **BLOCKS, **options))


def controlnet():
    torch.manual_seed(1)
    return randomized(diffusers.ControlNetModel(conditioning_embedding_out_channels=(4, 8), **BLOCKS), seed=1)
