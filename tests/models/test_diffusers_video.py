"""The U-Nets for videos against diffusers' own, with random weights: same outputs, every key consumed."""

import pytest
import torch
from conftest import relative_error

import fastdiff

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 2e-5  # of the output's RMS: both compute in float32

SMALL = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 12}
BY_3D = {**SMALL, "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
         "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}  # fmt: skip
BY_MOTION = {**SMALL, "num_attention_heads": 2, "motion_num_attention_heads": 4, "motion_max_seq_length": 6,
             "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
             "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion")}  # fmt: skip
CONFIGS_3D = [
    BY_3D,
    {**BY_3D, "block_out_channels": (16, 16, 32), "layers_per_block": 2, "attention_head_dim": 16, "in_channels": 9,
     "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"), "norm_eps": 1e-4,
     "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"), "mid_block_scale_factor": 2**0.5},
    {**BY_3D, "time_cond_proj_dim": 6, "downsample_padding": 0, "out_channels": 5,
     "down_block_types": ("DownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
]  # fmt: skip
CONFIGS_MOTION = [
    BY_MOTION,
    {**BY_MOTION, "use_motion_mid_block": False, "use_linear_projection": True, "addition_embed_type": "text_time",
     "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 11 + 6 * 8,
     "transformer_layers_per_block": (1, 2), "num_attention_heads": (2, 4)},
    {**BY_MOTION, "layers_per_block": (1, 2), "temporal_transformer_layers_per_block": (2, 1),
     "motion_num_attention_heads": (2, 4), "cross_attention_dim": (12, 12), "mid_block_layers": 2,
     "transformer_layers_per_mid_block": (1, 2), "temporal_transformer_layers_per_mid_block": 2,
     "mid_block_scale_factor": 2**0.5},
    {**BY_MOTION, "transformer_layers_per_block": ((1,), (1,)), "reverse_transformer_layers_per_block": (1, (2, 1)),
     "temporal_transformer_layers_per_block": ((2,), 1), "reverse_temporal_transformer_layers_per_block": ((1, 2), 1),
     "time_cond_proj_dim": 6, "downsample_padding": 0},
]  # fmt: skip


def random_model(cls, config, seed=0):
    """diffusers' model with weights that leave no branch at zero."""
    torch.manual_seed(seed)
    model = cls(**config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.2 * torch.randn_like(parameter))
        elif not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def call(config, size):
    x, t = torch.randn(2, config.get("in_channels", 4), 5, *size), torch.tensor([3, 977])
    guidance = {"timestep_cond": torch.randn(2, 6)} if "time_cond_proj_dim" in config else {}
    added = {"text_embeds": torch.randn(2, 11), "time_ids": torch.rand(2, 6) * 100}
    return x, t, torch.randn(2, 7, 12), guidance, added if "addition_embed_type" in config else {}


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize("config", CONFIGS_3D)
@torch.no_grad()
def test_unet_3d_condition_model(config, size, tmp_path):
    theirs = random_model(diffusers.UNet3DConditionModel, config)
    theirs.save_pretrained(tmp_path)
    ours = fastdiff.models.load(tmp_path)
    x, t, context, guidance, _ = call(config, size)
    assert relative_error(ours(x, t, context, **guidance), theirs(x, t, context, **guidance).sample) <= TOLERANCE


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize("config", CONFIGS_MOTION)
@torch.no_grad()
def test_unet_motion_model(config, size, tmp_path):
    theirs = random_model(diffusers.UNetMotionModel, config)
    theirs.save_pretrained(tmp_path)
    ours = fastdiff.models.load(tmp_path)
    x, t, context, guidance, added = call(config, size)
    expected = theirs(x, t, context.repeat_interleave(5, 0), added_cond_kwargs=added, **guidance).sample
    assert relative_error(ours(x, t, context, **guidance, **added), expected) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize(
    ("cls", "config"),
    [("UNet3DConditionModel", BY_3D), pytest.param("UNetMotionModel", BY_MOTION, marks=pytest.mark.long)],
)
def test_state_dicts_are_recognised_and_optimize_gives_the_same(cls, config):
    state = random_model(getattr(diffusers, cls), config).state_dict()
    ours = fastdiff.models.load(state, config=config)
    x, t, context, _, _ = call(config, (8, 8))
    expected = ours(x, t, context)
    fastdiff.optimize(ours)
    assert relative_error(ours(x, t, context), expected) <= TOLERANCE


@torch.no_grad()
def test_videos_are_sampled_with_guidance_and_caching():
    model = fastdiff.models.load(random_model(diffusers.UNetMotionModel, BY_MOTION).state_dict(), config=BY_MOTION)
    schedule = fastdiff.schedules.VPDiscrete.scaled_linear()
    options = dict(schedule=schedule, prediction="eps", solver="dpmpp-2m", steps=4, guidance=3.0, seed=0,
                   cond={"context": torch.randn(2, 7, 12)}, uncond={"context": torch.randn(2, 7, 12)})  # fmt: skip
    video = fastdiff.sample(model, (2, 4, 5, 8, 8), **options)
    assert video.shape == (2, 4, 5, 8, 8)
    assert video.isfinite().all()
    cached = fastdiff.caching.Cached(model, "deep:2")
    near = fastdiff.sample(cached, (2, 4, 5, 8, 8), **options)
    assert (cached.cache.full, cached.cache.reused) == (2, 2)
    assert 0 < relative_error(near, video) < 1.0


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        ("UNet3DConditionModel", {**BY_3D, "attention_head_dim": (8, 8)}, "attention_head_dim must be one number"),
        ("UNet3DConditionModel", {**BY_3D, "act_fn": "mish"}, "unknown act_fn 'mish'"),
        ("UNetMotionModel", {**BY_MOTION, "down_block_types": ("DownBlock3D",) * 2}, "did you mean 'DownBlockMotion'"),
        ("UNetMotionModel", {**BY_MOTION, "encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type must be"),
        ("UNetMotionModel", {**BY_MOTION, "cross_attention_dim": (12, 8)}, "must repeat one number"),
        ("UNetMotionModel", {**BY_MOTION, "addition_embed_type": "text"}, "did you mean 'text_time'"),
    ],
)
def test_configs_that_are_refused(cls, changes, message):
    with pytest.raises(ValueError, match=message):
        fastdiff.models.checkpoints.on_meta("diffusers", {**changes, "_class_name": cls})
