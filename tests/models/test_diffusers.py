"""The U-Nets and autoencoders against diffusers' own, with random weights: same outputs, every key consumed."""

import itertools
import random

import pytest
import torch
from conftest import relative_error

import fastdiff

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 2e-5  # of the output's RMS: both compute in float32

WIDTHS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
PLAIN = {**WIDTHS, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}  # fmt: skip
CROSS = {**WIDTHS, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 24,
         "attention_head_dim": 4}  # fmt: skip
UNETS = [
    PLAIN,
    {**PLAIN, "attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0},
    {**PLAIN, "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
    {**PLAIN, "down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
     "downsample_type": "resnet", "upsample_type": "resnet", "norm_eps": 1e-6},
    {**PLAIN, "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
     "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"), "mid_block_scale_factor": 2**0.5},
    {**PLAIN, "add_attention": False, "layers_per_block": 2, "center_input_sample": True, "in_channels": 1},
    {**PLAIN, "mid_block_type": None, "time_embedding_dim": 40, "num_class_embeds": 5},
    {**PLAIN, "attn_norm_num_groups": 4, "class_embed_type": "timestep", "time_embedding_type": "fourier"},
    {**PLAIN, "time_embedding_type": "learned", "num_train_timesteps": 1000, "class_embed_type": "identity"},
]  # fmt: skip
CONDITIONED = [
    CROSS,
    {**CROSS, "use_linear_projection": True, "transformer_layers_per_block": (2, 1), "attention_head_dim": (2, 4)},
    {**CROSS, "block_out_channels": (32, 32, 64), "layers_per_block": (1, 2, 1), "cross_attention_dim": (24, 24, 24),
     "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
     "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "addition_embed_type": "text_time",
     "transformer_layers_per_block": (1, 1, 3), "addition_time_embed_dim": 8,
     "projection_class_embeddings_input_dim": 11 + 6 * 8},
    {**CROSS, "only_cross_attention": (True, False), "num_class_embeds": 7, "conv_in_kernel": 5, "conv_out_kernel": 1},
    {**CROSS, "mid_block_type": "UNetMidBlock2D", "class_embed_type": "projection",
     "projection_class_embeddings_input_dim": 9, "resnet_time_scale_shift": "scale_shift"},
    {**CROSS, "mid_block_type": None, "class_embed_type": "simple_projection", "encoder_hid_dim": 10,
     "encoder_hid_dim_type": "text_proj", "projection_class_embeddings_input_dim": 9, "class_embeddings_concat": True},
    {**CROSS, "time_cond_proj_dim": 6, "timestep_post_act": "silu", "time_embedding_act_fn": "gelu",
     "class_embed_type": "timestep", "center_input_sample": True},
    {**CROSS, "down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D"),
     "up_block_types": ("AttnUpBlock2D", "CrossAttnUpBlock2D"), "time_embedding_type": "fourier", "dropout": 0.1},
    {**CROSS, "attention_head_dim": (4, 8), "down_block_types": ("AttnDownBlock2D",) * 2,
     "up_block_types": ("AttnUpBlock2D",) * 2},
]  # fmt: skip
LATENT = {"block_out_channels": (32, 64), "norm_num_groups": 8, "down_block_types": ("DownEncoderBlock2D",) * 2,
          "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip
AUTOENCODERS = [
    LATENT,
    {**LATENT, "block_out_channels": (32, 48, 64), "down_block_types": ("DownEncoderBlock2D",) * 3,
     "up_block_types": ("UpDecoderBlock2D",) * 3, "layers_per_block": 2, "latent_channels": 3, "in_channels": 1},
    {**LATENT, "mid_block_add_attention": False, "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
     "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")},
]  # fmt: skip


def random_model(cls, config, seed=0):
    """diffusers' model with weights that leave no branch at zero."""
    torch.manual_seed(seed)
    model = cls(**config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name != "time_proj.weight":
            parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.2 * torch.randn_like(parameter))
    return model


def saved(model, folder):
    model.save_pretrained(folder)
    return fastdiff.models.load(folder)


def labels_for(config, embedding):
    kind = config.get("class_embed_type")
    if kind is None:
        return torch.tensor([1, 3]) if config.get("num_class_embeds") else None
    sizes = {"identity": embedding, "projection": 9, "simple_projection": 9}
    return torch.tensor([3.0, 250.0]) if kind == "timestep" else torch.randn(2, sizes[kind])


@pytest.mark.parametrize("config", UNETS)
@torch.no_grad()
def test_unet_2d_model(config, tmp_path):
    theirs = random_model(diffusers.UNet2DModel, config)
    ours = saved(theirs, tmp_path)
    x, t = torch.randn(2, config.get("in_channels", 3), 16, 16), torch.tensor([3, 977])
    y = labels_for(config, theirs.time_embedding.linear_2.out_features)
    assert relative_error(ours(x, t, y), theirs(x, t, y).sample) <= TOLERANCE


@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
@pytest.mark.parametrize("config", CONDITIONED)
@torch.no_grad()
def test_unet_2d_condition_model(config, size, tmp_path):
    theirs = random_model(diffusers.UNet2DConditionModel, config)
    ours = saved(theirs, tmp_path)
    if "AttnUpBlock2D" in config["up_block_types"]:
        size = (16, 20)  # with that block diffusers takes no sizes that are odd at some level
    x, t = torch.randn(2, 4, *size), torch.tensor([3, 977])
    if config.get("time_embedding_type") == "fourier":
        t = torch.tensor([0.01, 0.9])  # 16 times 2 pi radians each: larger times leave float32 no digits
    context = torch.randn(2, 5, config.get("encoder_hid_dim", 24))
    y = labels_for(config, theirs.time_embedding.linear_2.out_features)
    guidance = torch.randn(2, 6) if "time_cond_proj_dim" in config else None
    added = {}
    if "addition_embed_type" in config:
        added = {"text_embeds": torch.randn(2, 11), "time_ids": torch.tensor([[64.0, 48, 0, 3, 64, 64]] * 2)}
    expected = theirs(x, t, context, class_labels=y, timestep_cond=guidance, added_cond_kwargs=added).sample
    assert relative_error(ours(x, t, context, y, timestep_cond=guidance, **added), expected) <= TOLERANCE


@pytest.mark.parametrize("convs", [(True, True), (False, False)])
@pytest.mark.parametrize("config", AUTOENCODERS)
@torch.no_grad()
def test_autoencoder_kl(config, convs, tmp_path):
    config = {**config, "use_quant_conv": convs[0], "use_post_quant_conv": convs[1]}
    theirs = random_model(diffusers.AutoencoderKL, config)
    ours = saved(theirs, tmp_path)
    x = torch.randn(2, config.get("in_channels", 3), 16, 16)
    posterior, expected = ours.encode(x), theirs.encode(x).latent_dist
    assert relative_error(posterior.mean, expected.mean) <= TOLERANCE
    assert relative_error(posterior.log_variance, expected.logvar) <= TOLERANCE
    assert relative_error(ours.decode(expected.mean), theirs.decode(expected.mean).sample) <= TOLERANCE
    noise = torch.randn_like(expected.mean)
    torch.testing.assert_close(posterior.sample(noise), posterior.mean + posterior.log_variance.div(2).exp() * noise)


@pytest.mark.parametrize("embed", [None, 5])
@pytest.mark.parametrize("config", AUTOENCODERS)
@torch.no_grad()
def test_vq_model(config, embed, tmp_path):
    config = {"latent_channels": 3, **config, "num_vq_embeddings": 20, "vq_embed_dim": embed}
    theirs = random_model(diffusers.VQModel, config)
    theirs.quantize.embedding.weight.copy_(torch.randn(20, embed or 3))
    ours = saved(theirs, tmp_path)
    x = torch.randn(2, config.get("in_channels", 3), 16, 16)
    z = theirs.encode(x).latents
    assert relative_error(ours.encode(x), z) <= TOLERANCE
    assert relative_error(ours.decode(z), theirs.decode(z).sample) <= TOLERANCE
    assert relative_error(ours.decode(z, quantize=False), theirs.decode(z, force_not_quantize=True).sample) <= TOLERANCE
    quantised, indices = ours.quantize(z)
    assert len(indices.unique()) > 1
    torch.testing.assert_close(ours.quantize.lookup(indices), quantised)
    torch.testing.assert_close(ours.decode_indices(indices), ours.decode(z))


def test_names_of_attention_before_diffusers_018(tmp_path):
    theirs = random_model(diffusers.AutoencoderKL, LATENT)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = theirs.state_dict()
    for (after, before), key in itertools.product(names.items(), list(state)):
        if f".{after}." in key:
            state[key.replace(after, before)] = state.pop(key)
    x = torch.randn(1, 3, 16, 16)
    ours = fastdiff.models.load(state, layout="diffusers", config=theirs.config)
    torch.testing.assert_close(ours.encode(x).mean, theirs.encode(x).latent_dist.mean, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("cls", "config"), [("UNet2DModel", PLAIN), ("UNet2DConditionModel", CROSS),
                                             ("AutoencoderKL", LATENT), ("VQModel", LATENT)])  # fmt: skip
def test_state_dicts_without_a_config(cls, config):
    """Only what the weights do not tell is given."""
    theirs = random_model(getattr(diffusers, cls), config)
    needed = {key: theirs.config[key] for key in ("norm_num_groups", "attention_head_dim") if key in theirs.config}
    ours = fastdiff.models.load(theirs.state_dict(), config=needed)
    total = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(parameter.numel() for parameter in ours.parameters()) == total


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (CROSS, {"dual_cross_attention": True}, "dual_cross_attention must be False"),
        (CROSS, {"down_block_types": ("KCrossAttnDownBlock2D", "DownBlock2D")}, "unknown block in down_block_types"),
        (CROSS, {"cross_attention_dims": 8}, "unknown field .* did you mean 'cross_attention_dim'"),
        (CROSS, {"act_fn": "gelu"}, "unknown act_fn 'gelu'"),
        (CROSS, {"block_out_channels": [32, 32]}, "block_out_channels=.32, 32., but the weights are those of"),
        (CROSS, {"num_attention_heads": 4}, "num_attention_heads must be None"),
    ],
)
def test_configs_that_are_refused(config, change, message):
    state = random_model(diffusers.UNet2DConditionModel, config).state_dict()
    given = {"_class_name": "UNet2DConditionModel", **config, **change}
    with pytest.raises((ValueError, fastdiff.WeightsError), match=message):
        fastdiff.models.load(state, layout="diffusers", config=given)


def test_random_configs(tmp_path):
    """Draws over the vocabulary of UNet2DConditionModel."""
    rng = random.Random(0)
    for draw in range(4):
        levels = rng.choice([1, 2, 3])
        kinds = [rng.choice(["CrossAttn", ""]) for _ in range(levels)]
        config = {
            "block_out_channels": tuple(rng.choice([16, 32, 48]) for _ in range(levels)),
            "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
            "up_block_types": tuple(f"{kind}UpBlock2D" for kind in kinds[::-1]),
            "layers_per_block": rng.choice([1, 2]),
            "norm_num_groups": 8,
            "cross_attention_dim": rng.choice([8, 20]),
            "attention_head_dim": rng.choice([2, 4]),
            "transformer_layers_per_block": rng.choice([1, 2]),
            "use_linear_projection": rng.random() < 0.5,
            "flip_sin_to_cos": rng.random() < 0.5,
            "freq_shift": rng.choice([0, 1]),
        }
        theirs = random_model(diffusers.UNet2DConditionModel, config, seed=draw)
        ours = saved(theirs, tmp_path / str(draw))
        inputs = torch.randn(1, 4, 8, 8), torch.tensor([500.5]), torch.randn(1, 3, config["cross_attention_dim"])
        with torch.no_grad():
            assert relative_error(ours(*inputs), theirs(*inputs).sample) <= TOLERANCE, config
