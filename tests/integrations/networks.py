"""Small networks of diffusers: how one is made, its arguments for a batch, a height and a width, and a first height."""

from __future__ import annotations

import diffusers
import torch
from torch import randn

# fmt: off
UNET = dict(
    sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
    attention_head_dim=8)
MOTION = dict(
    block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32, num_attention_heads=2,
    down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), motion_num_attention_heads=2, motion_max_seq_length=8)


def places(height, width):
    """Of Flux's tokens: (H W, 3), the row and the column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float()


NETWORKS = {
    "UNetMotionModel": (
        lambda: diffusers.UNetMotionModel(**MOTION),
        lambda b, h, w: dict(sample=randn(b, 4, 4, h, w), timestep=torch.tensor(300),
            encoder_hidden_states=randn(4 * b, 7, 32)),
        16,
    ),
    "UNet3DConditionModel": (
        lambda: diffusers.UNet3DConditionModel(**UNET | dict(down_block_types=("CrossAttnDownBlock3D",
            "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"))),
        lambda b, h, w: dict(sample=randn(b, 4, 4, h, w), timestep=torch.tensor(300),
            encoder_hidden_states=randn(b, 7, 32)),
        16,
    ),
    "DeepFloyd IF": (
        lambda: diffusers.UNet2DConditionModel(**UNET |
            dict(down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", up_block_types=("SimpleCrossAttnUpBlock2D",
            "ResnetUpsampleBlock2D"), in_channels=3, out_channels=6, encoder_hid_dim=32,
            encoder_hid_dim_type="text_proj", cross_attention_norm="group_norm",
            addition_embed_type="text", addition_embed_type_num_heads=2,
            resnet_time_scale_shift="scale_shift", time_embedding_type="positional", act_fn="gelu",
            only_cross_attention=False)),
        lambda b, h, w: dict(sample=randn(b, 3, h, w), timestep=torch.tensor(300),
            encoder_hidden_states=randn(b, 7, 32)),
        16,
    ),
    "Kandinsky 2": (
        lambda: diffusers.UNet2DConditionModel(**UNET |
            dict(down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", up_block_types=("SimpleCrossAttnUpBlock2D",
            "ResnetUpsampleBlock2D"), in_channels=4, out_channels=8, encoder_hid_dim=32,
            encoder_hid_dim_type="image_proj", addition_embed_type="image",
            resnet_time_scale_shift="scale_shift")),
        lambda b, h, w: dict(sample=randn(b, 4, h, w), timestep=torch.tensor(300),
            encoder_hidden_states=None, added_cond_kwargs={"image_embeds": randn(b, 32)}),
        16,
    ),
    "SD3": (
        lambda: diffusers.SD3Transformer2DModel(sample_size=32, patch_size=2, in_channels=4,
            num_layers=3, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32,
            caption_projection_dim=32, pooled_projection_dim=24, out_channels=4, pos_embed_max_size=48),
        lambda b, h, w: dict(hidden_states=randn(b, 4, h, w), encoder_hidden_states=randn(b, 9, 32),
            pooled_projections=randn(b, 24), timestep=torch.full((b,), 350.0)),
        16,
    ),
    "PixArt": (
        lambda: diffusers.PixArtTransformer2DModel(sample_size=8, patch_size=2, in_channels=4,
            num_layers=2, num_attention_heads=2, attention_head_dim=16, out_channels=8,
            cross_attention_dim=32, caption_channels=24, norm_type="ada_norm_single"),
        lambda b, h, w: dict(hidden_states=randn(b, 4, h, w), encoder_hidden_states=randn(b, 7, 24),
            timestep=torch.full((b,), 350), added_cond_kwargs={"resolution": None, "aspect_ratio":
            None}),
        8,
    ),
    "Wan": (
        lambda: diffusers.WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2,
            attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=256, ffn_dim=32,
            num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32),
        lambda b, h, w: dict(hidden_states=randn(b, 4, 2, h, w), timestep=torch.full((b,), 350),
            encoder_hidden_states=randn(b, 7, 16)),
        16,
    ),
    "CogView4": (
        lambda: diffusers.CogView4Transformer2DModel(patch_size=2, in_channels=4, num_layers=2,
            attention_head_dim=8, num_attention_heads=4, out_channels=4, text_embed_dim=16,
            time_embed_dim=8, condition_dim=4),
        lambda b, h, w: dict(hidden_states=randn(b, 4, h, w), encoder_hidden_states=randn(b, 7, 16),
            timestep=torch.full((b,), 350.0), original_size=torch.tensor([[h * 8.0, w * 8.0]] * b),
            target_size=torch.tensor([[h * 8.0, w * 8.0]] * b), crop_coords=torch.zeros(b, 2)),
        16,
    ),
    "Lumina2": (
        lambda: diffusers.Lumina2Transformer2DModel(sample_size=16, patch_size=2, in_channels=4,
            hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1,
            multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128), cap_feat_dim=8),
        lambda b, h, w: dict(hidden_states=randn(b, 4, h, w), encoder_hidden_states=randn(b, 9, 8),
            timestep=torch.full((b,), 0.35), encoder_attention_mask=torch.ones(b, 9, dtype=torch.bool)),
        16,
    ),
    "AutoencoderKLCosmos": (
        lambda: diffusers.AutoencoderKLCosmos(in_channels=3, out_channels=3, latent_channels=4,
            encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8),
            attention_resolutions=(8,), resolution=64, num_layers=2, patch_size=4, patch_type="haar",
            scaling_factor=1.0, spatial_compression_ratio=4, temporal_compression_ratio=4),
        lambda b, h, w: dict(sample=randn(b, 3, 9, h, w)),
        32,
    ),
    "AutoencoderTiny": (
        lambda: diffusers.AutoencoderTiny(in_channels=3, out_channels=3, encoder_block_out_channels=(64,
            64), decoder_block_out_channels=(64, 64), num_encoder_blocks=(1, 2), num_decoder_blocks=(2,
            1)),
        lambda b, h, w: dict(sample=randn(b, 3, h, w)),
        32,
    ),
    "NCSN++": (
        lambda: diffusers.UNet2DModel(sample_size=32, in_channels=3, out_channels=3,
            block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=None, norm_eps=1e-06,
            time_embedding_type="fourier", down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"), attention_head_dim=8,
            mid_block_scale_factor=1.41),
        lambda b, h, w: dict(sample=randn(b, 3, h, w), timestep=torch.full((b,), 10)),
        32,
    ),
    "CogVideoX": (
        lambda: diffusers.CogVideoXTransformer3DModel(num_attention_heads=2, attention_head_dim=8,
            in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=8, num_layers=2,
            sample_width=8, sample_height=8, sample_frames=8, patch_size=2,
            temporal_compression_ratio=4, max_text_seq_length=8, use_rotary_positional_embeddings=False),
        lambda b, h, w: dict(hidden_states=randn(b, 1, 4, h, w), encoder_hidden_states=randn(b, 8, 8),
            timestep=torch.full((b,), 10)),
        8,
    ),
    "HunyuanVideo": (
        lambda: diffusers.HunyuanVideoTransformer3DModel(in_channels=4, out_channels=4,
            num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
            num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
            pooled_projection_dim=8, rope_axes_dim=(2, 4, 4)),
        lambda b, h, w: dict(hidden_states=randn(b, 4, 1, h, w), timestep=torch.full((b,), 10),
            encoder_hidden_states=randn(b, 7, 16), pooled_projections=randn(b, 8),
            encoder_attention_mask=torch.ones(b, 7), guidance=torch.full((b,), 1000.0)),
        16,
    ),
    "Flux": (
        lambda: diffusers.FluxTransformer2DModel(in_channels=8, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=16,
            axes_dims_rope=(4, 6, 6), guidance_embeds=True),
        lambda b, h, w: dict(hidden_states=randn(b, h * w // 4, 8), encoder_hidden_states=randn(b, 7, 24),
            pooled_projections=randn(b, 16), timestep=torch.full((b,), 0.35), guidance=torch.full((b,), 3.5),
            txt_ids=torch.zeros(7, 3), img_ids=places(h // 2, w // 2)),
        16,
    ),
    "VQModel": (
        lambda: diffusers.VQModel(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, num_vq_embeddings=8, norm_num_groups=8,
            lookup_from_codebook=False),
        lambda b, h, w: dict(sample=randn(b, 3, h, w)),
        16,
    ),
    "ControlNet-XS": (
        lambda: diffusers.UNetControlNetXSModel(sample_size=16, block_out_channels=(32, 64), norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, num_attention_heads=2,
            transformer_layers_per_block=1, ctrl_block_out_channels=(8, 16), ctrl_num_attention_heads=2,
            ctrl_max_norm_num_groups=4, ctrl_conditioning_embedding_out_channels=(8, 8)),
        lambda b, h, w: dict(sample=randn(b, 4, h, w), timestep=torch.tensor([10]),
            encoder_hidden_states=randn(b, 7, 32), controlnet_cond=randn(b, 3, 2 * h, 2 * w), conditioning_scale=1.0),
        16,
    ),
    "UNet1D": (
        lambda: diffusers.UNet1DModel(block_out_channels=(16, 32, 32, 32), in_channels=14, out_channels=14,
            time_embedding_type="positional", use_timestep_embedding=True, flip_sin_to_cos=False, freq_shift=1.0,
            out_block_type="OutConv1DBlock", mid_block_type="MidResTemporalBlock1D", act_fn="swish",
            down_block_types=("DownResnetBlock1D",) * 4, up_block_types=("UpResnetBlock1D",) * 3),
        lambda b, h, w: dict(sample=randn(b, 14, h), timestep=torch.full((b,), 10)),
        32,
    ),
    "Latte": (
        lambda: diffusers.LatteTransformer3DModel(sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8,
            num_attention_heads=3, caption_channels=8, in_channels=4, cross_attention_dim=24, out_channels=8,
            norm_type="ada_norm_single", norm_elementwise_affine=False, video_length=2),
        lambda b, h, w: dict(hidden_states=randn(b, 4, 2, h, w), encoder_hidden_states=randn(b, 8, 8),
            timestep=torch.full((b,), 10)),
        8,
    ),
}
