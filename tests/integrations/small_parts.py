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


def ip_adapter(unet, seed=0, width=24):
    """The weights of an IP-Adapter for a U-Net, as its file has them. width: of an image's embedding."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    torch.manual_seed(seed)
    cross = unet.config.cross_attention_dim
    adapter, key = {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            features = unet.get_submodule(name.rpartition(".")[0]).to_q.out_features
            state = IPAdapterAttnProcessor2_0(features, cross, num_tokens=(4,)).state_dict()
            for part in ("k", "v"):
                adapter[f"{key}.to_{part}_ip.weight"] = state[f"to_{part}_ip.0.weight"]
            key += 2
    projection = {"proj.weight": torch.randn(4 * cross, width) / 5, "proj.bias": torch.randn(4 * cross)}
    projection |= {f"norm.{name}": torch.randn(cross) for name in ("weight", "bias")}
    return {"image_proj": projection, "ip_adapter": adapter}
