"""What a state dict tells of its model: sizes, options, levels with attention. No weights, and none of the originals'
code: the state dicts are made from the layouts' own lists of names, which the golden cases hold to the originals'."""

import pytest
import torch
from original_names import layout_of, state_dict

import fastdiff

ADM = {"in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1, "attention_resolutions": (2,),
       "channel_mult": (1, 2), "num_head_channels": 16}  # fmt: skip
LDM = {"in_channels": 4, "model_channels": 32, "out_channels": 4, "num_res_blocks": 2, "attention_resolutions": (2, 4),
       "channel_mult": (1, 2, 3), "num_head_channels": 16, "use_spatial_transformer": True,
       "context_dim": 24}  # fmt: skip
CONTROL = {field: value for field, value in LDM.items() if field != "out_channels"}
SR3 = {"in_channel": 4, "inner_channel": 32, "norm_groups": 32, "channel_mults": (1, 2, 2), "res_blocks": 2,
       "attn_res": (32,)}  # fmt: skip
PALETTE = {"in_channel": 6, "inner_channel": 32, "out_channel": 3, "res_blocks": 1, "attn_res": (2,),
           "channel_mults": (1, 2), "num_head_channels": 16}  # fmt: skip
LATENT = {"ch": 32, "out_ch": 3, "in_channels": 3, "z_channels": 4, "num_res_blocks": 2, "ch_mult": (1, 2, 2),
          "resolution": 64, "embed_dim": 3}  # fmt: skip
DDPM = {"ch": 32, "out_ch": 3, "in_channels": 3, "num_res_blocks": 1, "ch_mult": (1, 2), "resolution": 16,
        "attn_resolutions": (8,)}  # fmt: skip
EDM = {"img_resolution": 16, "img_channels": 3, "label_dim": 5, "model_channels": 32, "channel_mult": (1, 2),
       "num_blocks": 2, "attn_resolutions": (8,)}  # fmt: skip
GLIDE = {**ADM, "text_ctx": 6, "xf_width": 32, "xf_layers": 2, "xf_heads": 4, "n_vocab": 20}
DIT = {"input_size": 16, "hidden_size": 48, "depth": 2, "num_heads": 4, "num_classes": 9}
UVIT = {"img_size": 16, "patch_size": 2, "in_chans": 4, "embed_dim": 48, "depth": 4, "num_heads": 4}
KARLO = {"in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1, "channel_mult": (1, 2),
         "attention_resolutions": (), "use_middle_attention": False, "super_res": True}  # fmt: skip
KARLO_DECODER = {**ADM, "xf_width": 24, "clip_dim": 20, "clip_emb_mult": 3, "clip_emb_drop": 0.1}
VIDEO = {"dim": 16, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 16}
FRAMES = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 12}
IMAGEN = {"dim": 16, "text_embed_dim": 20, "max_text_len": 8, "attn_pool_num_latents": 5, "attn_heads": 2,
          "attn_dim_head": 16, "dim_mults": (1, 2)}  # fmt: skip
DDP = {"dim": 16, "dim_mults": (1, 2, 3), "channels": 4}
KARRAS = {"image_size": 16, "dim": 16, "channels": 3, "num_downsamples": 2, "num_blocks_per_stage": 2}
# The layout's class, the whole config, and the fields that are in no shape and must be given.
CASES = [
    ("ADM's U-Net", ADM, ["num_head_channels"]),
    ("ADM's U-Net", {**ADM, "num_classes": 9, "use_scale_shift_norm": True, "resblock_updown": True,
                     "num_res_blocks": (1, 2)}, ["num_head_channels"]),
    ("ADM's U-Net", {**ADM, "channel_mult": (1, 1, 2), "attention_resolutions": (1, 4), "conv_resample": False},
     ["num_head_channels"]),
    ("ADM's U-Net", {**ADM, "super_res": True, "dims": 1}, ["num_head_channels"]),
    ("the U-Net of LDM", LDM, ["num_head_channels"]),
    ("the U-Net of LDM", {**LDM, "transformer_depth": (1, 2, 3), "num_classes": "sequential", "adm_in_channels": 13},
     ["num_head_channels"]),
    # levels are counted right where residual blocks halve the resolution
    ("the U-Net of LDM", {**LDM, "resblock_updown": True, "disable_self_attentions": (False, False, True)},
     ["num_head_channels"]),
    ("the U-Net of LDM", {**LDM, "resblock_updown": True, "transformer_depth": (1, 1, 2), "n_embed": 40},
     ["num_head_channels"]),
    ("the U-Net of LDM", {**LDM, "disable_middle_transformer": True, "num_classes": "timestep"},
     ["num_head_channels"]),
    ("the U-Net of LDM", {**LDM, "num_attention_blocks": (2, 2, 2)}, ["num_head_channels"]),
    ("the U-Net of LDM", {**LDM, "num_attention_blocks": (2, 1, 2), "num_classes": "continuous"},
     ["num_head_channels"]),
    ("ControlNet of Stable", CONTROL, ["num_head_channels"]),
    ("ControlNet of Stable", {**CONTROL, "hint_channels": 1, "transformer_depth": (1, 2, 3), "conv_resample": False},
     ["num_head_channels"]),
    ("ControlNet of Stable", {**CONTROL, "num_attention_blocks": (2, 1, 2), "use_scale_shift_norm": True},
     ["num_head_channels"]),
    # residual blocks that halve the resolution look like the others
    ("ControlNet of Stable", {**CONTROL, "resblock_updown": True},
     ["num_head_channels", "resblock_updown", "num_res_blocks"]),
    ("SR3's U-Net", SR3, []),
    ("SR3's U-Net", {**SR3, "network": "ddpm", "channel_mults": (1,), "attn_res": ()}, []),
    ("SR3's U-Net", {**SR3, "network": "ddpm", "with_time_emb": False, "image_size": 64, "out_channel": 4},
     ["image_size"]),
    ("SDM's U-Net", {**ADM, "num_classes": 5}, ["num_head_channels"]),
    ("SDM's U-Net", {**ADM, "num_classes": 5, "use_scale_shift_norm": True, "resblock_updown": True,
                     "channel_mult": (1, 1, 2), "attention_resolutions": (1, 4)}, ["num_head_channels"]),
    ("SDM's U-Net", {**ADM, "num_classes": 5, "conv_resample": False, "num_res_blocks": 2}, ["num_head_channels"]),
    ("Palette's U-Net", PALETTE, ["num_head_channels"]),
    ("Palette's U-Net", {**PALETTE, "resblock_updown": False, "use_scale_shift_norm": False, "attn_res": (1, 4),
                         "channel_mults": (1, 1, 2)}, ["num_head_channels"]),
    ("autoencoders", LATENT, ["resolution"]),
    ("autoencoders", {**LATENT, "attn_resolutions": (32,), "attn_type": "linear"}, ["resolution"]),
    ("autoencoders", {**LATENT, "double_z": False, "n_embed": 30, "resamp_with_conv": False, "attn_type": "none"},
     ["resolution"]),
    ("DDPM's U-Net", DDPM, ["resolution"]),
    ("DDPM's U-Net", {**DDPM, "use_timestep": False, "use_linear_attn": True}, ["resolution"]),
    ("preconditioned", {**EDM, "model_type": "SongUNet"}, []),
    ("preconditioned", {**EDM, "model_type": "DhariwalUNet", "attn_resolutions": (8,), "augment_dim": 9}, []),
    ("preconditioned", {**EDM, "model_type": "SongUNet", "embedding_type": "fourier", "encoder_type": "residual",
                        "decoder_type": "skip", "channel_mult_noise": 2}, []),
    ("GLIDE", GLIDE, ["num_head_channels", "xf_heads"]),
    ("GLIDE", {**GLIDE, "super_res": True, "inpaint": True, "xf_padding": True, "xf_final_ln": False},
     ["num_head_channels", "xf_heads"]),
    ("SiT", DIT, ["num_heads"]),
    ("SiT", {**DIT, "patch_size": 4, "learn_sigma": False, "mlp_ratio": 3.0}, ["num_heads"]),
    ("U-ViT", {**UVIT, "num_classes": 9, "conv": False}, ["num_heads"]),
    ("U-ViT", {**UVIT, "mlp_time_embed": True, "skip": False, "qkv_bias": True, "mlp_ratio": 2.0}, ["num_heads"]),
    ("UNet3DConditionModel", {**FRAMES, "attention_head_dim": 8, "time_cond_proj_dim": 5,
                              "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
                              "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D")}, ["norm_num_groups"]),
    ("UNetMotionModel", {**FRAMES, "motion_max_seq_length": 6, "temporal_transformer_layers_per_block": (1, 2),
                         "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
                         "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion")}, ["norm_num_groups"]),
    ("UNetMotionModel", {**FRAMES, "layers_per_block": (1, 2), "use_motion_mid_block": False,
                         "mid_block_layers": 2, "transformer_layers_per_block": (2, 3),
                         "transformer_layers_per_mid_block": 2,
                         "down_block_types": ("CrossAttnDownBlockMotion",) * 2,
                         "up_block_types": ("CrossAttnUpBlockMotion",) * 2}, ["norm_num_groups"]),
    ("Unet3D", {**VIDEO, "cond_dim": 12}, []),
    ("Unet3D", {**VIDEO, "dim_mults": (1, 2, 3), "use_bert_text_cond": True}, []),
    ("Unet3D", {**VIDEO, "channels": 1, "out_dim": 2, "init_kernel_size": 3, "use_sparse_linear_attn": False}, []),
    ("U-ViT", {**UVIT, "clip_dim": 24, "num_clip_token": 77}, ["num_heads"]),
    ("U-ViT", {**UVIT, "clip_dim": 24, "num_clip_token": 5}, ["num_heads", "num_clip_token"]),
    ("Karlo's prior", {"text_ctx": 9, "xf_width": 32, "xf_layers": 2, "xf_heads": 4, "xf_final_ln": False,
                       "clip_dim": 12}, ["xf_heads"]),
    ("Karlo's decoder", KARLO_DECODER, ["num_head_channels"]),
    ("Karlo's decoder", {**KARLO_DECODER, "clip_emb_drop": 0.0, "use_middle_attention": False, "num_res_blocks": (1, 2),
                         "use_scale_shift_norm": True, "resblock_updown": True}, ["num_head_channels"]),
    ("imagen-pytorch", IMAGEN, []),
    ("imagen-pytorch", {**IMAGEN, "layer_attns": (False, True), "use_linear_attn": (True, False), "lowres_cond": True,
                        "memory_efficient": True, "combine_upsample_fmaps": True, "channels_out": 6, "ff_mult": 1.5,
                        "init_conv_to_final_conv_residual": True, "pixel_shuffle_upsample": False, "self_cond": True,
                        "layer_attns_depth": (2, 1)}, []),
    ("imagen-pytorch", {**IMAGEN, "final_resnet_block": False, "init_cross_embed": False, "attn_pool_text": False,
                        "use_global_context_attn": False, "num_resnet_blocks": (2, 0), "final_conv_kernel_size": 1,
                        "attend_at_middle": False, "cond_dim": 24, "cond_images_channels": 2}, []),
    ("imagen-pytorch", {**IMAGEN, "use_linear_cross_attn": (True, False), "layer_cross_attns": (False, True),
                        "num_time_tokens": 3, "dim_mults": (1, 3), "init_cross_embed_kernel_sizes": (3, 9)},
     ["use_linear_cross_attn", "layer_cross_attns"]),
    ("the U-Net of denoising", DDP, []),
    ("the U-Net of denoising", {**DDP, "init_dim": 24, "self_condition": True, "learned_sinusoidal_cond": True,
                           "learned_sinusoidal_dim": 6, "attn_heads": (1, 2, 3), "attn_dim_head": (8, 8, 16),
                           "full_attn": (True, False, True)}, []),
    ("the U-Net of denoising", {**DDP, "learned_variance": True, "random_fourier_features": True}, []),
    # as many channels at both ends: they may be twice as many as those of a picture, or not
    ("the U-Net of denoising", {**DDP, "learned_variance": True, "self_condition": True}, ["self_condition"]),
    ("Unet1D", DDP, []),
    ("Unet1D", {**DDP, "out_dim": 5, "attn_heads": 3, "attn_dim_head": 8}, ["attn_heads"]),
    ("Unet1D", {**DDP, "self_condition": True, "attn_heads": 3, "attn_dim_head": 8}, ["attn_dim_head"]),
    ("U-Net with classes of denoising", {**DDP, "num_classes": 7, "learned_variance": True}, []),
    ("KarrasUnet", {**KARRAS, "attn_res": (16, 4), "num_classes": 5, "dim_max": 32}, ["image_size"]),
    ("KarrasUnet", {**KARRAS, "attn_res": (), "self_condition": True, "fourier_dim": 6}, ["image_size"]),
    ("KarrasUnet", {**KARRAS, "attn_res": (8,), "attn_dim_head": 8, "num_blocks_per_stage": 1}, ["image_size"]),
    ("TimeGrad", {"target_dim": 7, "cond_length": 5}, []),
    ("TimeGrad", {"target_dim": 6, "cond_length": 9, "time_emb_dim": 4, "residual_layers": 3, "residual_channels": 6,
                  "dilation_cycle_length": 3, "residual_hidden": 12}, ["dilation_cycle_length"]),
    ("temporal U-Net", {"transition_dim": 5, "dim": 16, "dim_mults": (1, 2, 3), "kernel_size": 3}, []),
    ("temporal U-Net", {"transition_dim": 5, "dim": 16, "returns_condition": True, "calc_energy": True},
     ["calc_energy"]),
    ("prior of DALLE2", {"dim": 48, "depth": 2, "num_timesteps": 50, "max_text_len": 8, "heads": 4}, []),
    ("prior of DALLE2", {"dim": 48, "depth": 2, "num_time_embeds": 2, "num_image_embeds": 3, "num_text_embeds": 2,
                         "self_cond": True, "normformer": True, "norm_in": True, "norm_out": False, "dim_head": 16,
                         "final_proj": False, "rotary_emb": False, "ff_mult": 2.5}, ["self_cond"]),
    ("Karlo's super-resolution", KARLO, []),
    ("Karlo's super-resolution", {**KARLO, "resblock_updown": True, "channel_mult": (1, 2, 2), "clip_dim": 9}, []),
]  # fmt: skip


@pytest.mark.parametrize(("words", "config", "untold"), CASES)
def test_the_weights_tell_the_rest(words, config, untold):
    layout = layout_of(words)
    state = state_dict(layout, config)
    whole = fastdiff.models.load(state, layout=layout.name, config=config)
    told = fastdiff.models.load(state, layout=layout.name, config={field: config[field] for field in untold})
    assert str(told) == str(whole)  # layers, sizes, and what torch prints of them
    assert {k: v.shape for k, v in told.state_dict().items()} == {k: v.shape for k, v in whole.state_dict().items()}


def test_a_network_without_times_has_their_projections():
    """As the original's constructor makes them; nothing is computed with them."""
    layout = layout_of("DDPM's U-Net")
    config = {**DDPM, "use_timestep": False}
    state = state_dict(layout, config)
    for key in [key for key in state if key.endswith(".conv1.weight")]:
        block = key.removesuffix("conv1.weight")
        state |= {f"{block}temb_proj.weight": torch.zeros(len(state[key]), 128),
                  f"{block}temb_proj.bias": torch.zeros(len(state[key]))}  # fmt: skip
    model = fastdiff.models.load(state, layout="latent-diffusion", config={"resolution": 16})
    assert model.time_embedding is None
    with_times = {**state_dict(layout, DDPM), "mid.block_3.temb_proj.weight": torch.zeros(1)}
    with pytest.raises(fastdiff.WeightsError, match=r"left over: .*temb_proj"):
        fastdiff.models.load(with_times, layout="latent-diffusion", config={"resolution": 16})


def test_what_the_shapes_do_not_tell_apart_is_asked_for():
    """SiT has DiT's keys; a text's tokens and the patches share one table of positions."""
    state = state_dict(layout_of("SiT"), DIT)
    assert type(fastdiff.models.load(state, config={"num_heads": 4})).__name__ == "DiT"
    state = state_dict(layout_of("U-ViT"), {**UVIT, "clip_dim": 24, "num_clip_token": 5})
    with pytest.raises(ValueError, match="config must give num_clip_token"):
        fastdiff.models.load(state, config={"num_heads": 4})


def test_published_files_have_a_prefix():
    """Karlo's: the class that holds the network calls it `model`."""
    layout = layout_of("Karlo's prior")
    config = {"text_ctx": 9, "xf_width": 32, "xf_layers": 2, "xf_heads": 4, "xf_final_ln": True, "clip_dim": 12}
    state = state_dict(layout, config, prefix="model.")
    assert fastdiff.models.load(state, config={"xf_heads": 4}).config.num_layers == 2
    del state["model.out_proj.bias"]
    with pytest.raises(fastdiff.WeightsError, match=r"missing: model\.out_proj\.bias"):
        fastdiff.models.load(state, config={"xf_heads": 4})


def test_files_of_the_trainer_of_denoising_diffusion_pytorch(tmp_path):
    """The network is in a process that has tables of its own, and there is the average over training."""
    layout = layout_of("the U-Net of denoising")
    process = {**state_dict(layout, DDP, "model."), "betas": torch.zeros(1000)}
    average = {f"ema_model.{key}": torch.full_like(value, 2) for key, value in process.items()}
    average |= {f"online_model.{key}": value for key, value in process.items()}
    torch.save(
        {"step": 7, "model": process, "ema": {**average, "initted": torch.tensor(True)}}, tmp_path / "model-1.pt"
    )
    model = fastdiff.models.load(tmp_path / "model-1.pt")
    assert (model.stem.weight == 2).all()
    assert fastdiff.models.load(process).config.channels == 4


def test_a_file_with_both_networks_of_karlos_super_resolution():
    layout = layout_of("Karlo's super-resolution")
    state = {key: value for part in layout.parts.values() for key, value in state_dict(layout, KARLO, part).items()}
    for part in layout.parts:
        assert fastdiff.models.load(state, part=part).config.super_res
