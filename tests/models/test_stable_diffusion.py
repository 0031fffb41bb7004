"""A Stable Diffusion single file: its parts, at small widths against diffusers through diffusers' own conversion of the
keys, and at the published widths."""

import pytest
import torch
from conftest import relative_error
from original_names import layout_of, state_dict
from safetensors.torch import save_file

import fastdiff
from fastdiff import WeightsError
from fastdiff.models.checkpoints.loading import on_meta
from fastdiff.models.parts.counting import parameters

UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": (4, 2, 1),
        "num_res_blocks": 2, "channel_mult": (1, 2, 4, 4), "num_heads": 8, "use_spatial_transformer": True,
        "transformer_depth": 1, "context_dim": 24, "legacy": False}  # fmt: skip
VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
       "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attn_resolutions": (), "embed_dim": 4}  # fmt: skip
HEADS = {"num_heads": 8}
TOLERANCE = 2e-5  # of the output's RMS: both compute in float32


def unet_and_vae(unet, vae):
    """Their tensors with the names of the whole file, where linear maps of pixels are 1 x 1 convolutions."""
    tensors = {
        **state_dict(layout_of("the U-Net of LDM"), unet, "model.diffusion_model."),
        **state_dict(layout_of("the autoencoders"), vae, "first_stage_model."),
    }
    pixels = ("1.proj_in.weight", "1.proj_out.weight", "attn_1.q.weight", "attn_1.k.weight", "attn_1.v.weight")
    linear = unet.get("use_linear_in_transformer", False)
    for key, value in tensors.items():
        if key.endswith(pixels) and not (linear and key.startswith("model.")):
            tensors[key] = value[..., None, None]
    return tensors


def whole_file(seed=0):
    """A small model's file: also a text encoder, the tables of the schedule, and averages of the weights."""
    state = unet_and_vae(UNET, VAE)
    text = "cond_stage_model.transformer.text_model."
    for key, shape in {
        "embeddings.position_ids": (1, 77), "embeddings.token_embedding.weight": (50, 24),
        "embeddings.position_embedding.weight": (77, 24), "encoder.layers.0.self_attn.q_proj.weight": (24, 24),
        "encoder.layers.0.layer_norm1.bias": (24,), "final_layer_norm.weight": (24,),
    }.items():  # fmt: skip
        state[text + key] = torch.empty(shape)
    for key in ("betas", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_variance"):
        state[key] = torch.empty(1000)
    state |= {"model_ema.decay": torch.empty(()), "model_ema.diffusion_modelout2bias": torch.empty(4)}
    generator = torch.Generator().manual_seed(seed)
    for key, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
        state[key] = scale * noise + (1.0 if value.ndim == 1 and key.endswith("weight") else 0.0)
    return state


@pytest.fixture(scope="module")
def whole():
    return whole_file()


@pytest.fixture(scope="module")
def file(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "v1-5-pruned.safetensors"
    save_file(whole, path)
    return path


@pytest.mark.parametrize("part", [None, "unet"])
@torch.no_grad()
def test_unet(file, whole, part):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128), layers_per_block=2, cross_attention_dim=24, attention_head_dim=8
    ).eval()
    theirs.load_state_dict(convert_ldm_unet_checkpoint(dict(whole), theirs.config))
    ours = fastdiff.models.load(file, part=part, config=HEADS)
    x, t, context = torch.randn(2, 4, 8, 16), torch.tensor([0, 981]), torch.randn(2, 7, 24)
    assert relative_error(ours(x, t, context), theirs(x, t, context).sample) <= TOLERANCE


@torch.no_grad()
def test_vae(file, whole):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 128, 128), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    theirs.load_state_dict(convert_ldm_vae_checkpoint(dict(whole), theirs.config))
    ours = fastdiff.models.load(file, part="vae")
    x, z = torch.randn(1, 3, 32, 16), torch.randn(1, 4, 4, 6)
    assert relative_error(ours.encode(x).moments, theirs.encode(x).latent_dist.parameters) <= TOLERANCE
    assert relative_error(ours.decode(z), theirs.decode(z).sample) <= TOLERANCE


@pytest.mark.parametrize(("prefix", "part"), [("model.diffusion_model.", "unet"), ("first_stage_model.", "vae")])
def test_a_file_of_one_part_is_the_same(whole, prefix, part):
    """With the prefix and without it."""
    config = HEADS if part == "unet" else {}
    expected = fastdiff.models.load(whole, part=part, config=config).state_dict()
    alone = {key: value for key, value in whole.items() if key.startswith(prefix)}
    for state in (alone, {key.removeprefix(prefix): value for key, value in alone.items()}):
        model = fastdiff.models.load(state, config=config)
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_as_a_training_script_saves_it(whole, tmp_path):
    torch.save({"state_dict": whole, "global_step": 470_000, "epoch": 2}, tmp_path / "v1-5-pruned.ckpt")
    model = fastdiff.models.load(tmp_path / "v1-5-pruned.ckpt", part="vae")
    assert torch.equal(model.quant_conv.bias, whole["first_stage_model.quant_conv.bias"])


def test_a_part_that_is_not_there(file, whole):
    with pytest.raises(ValueError, match="unknown part of layout latent-diffusion 'clip'"):
        fastdiff.models.load(file, part="clip")
    with pytest.raises(WeightsError, match="part 'text' needs the folder of a pipeline"):
        fastdiff.models.load(file, part="text")
    unet = {key: value for key, value in whole.items() if key.startswith("model.")}
    with pytest.raises(WeightsError, match="has no part vae, only unet"):
        fastdiff.models.load(unet, part="vae")


def test_one_error_lists_the_keys_of_the_part(whole):
    """As they are called in the file; those of other parts are of no concern."""
    unet, vae = "model.diffusion_model.", "first_stage_model."
    state = dict(whole)
    del state[f"{unet}middle_block.0.in_layers.0.bias"], state[f"{vae}decoder.mid.attn_1.k.weight"]
    state[f"{unet}out.2.bias"] = torch.zeros(5)
    state[f"{unet}extra"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        fastdiff.models.load(state, config=HEADS)
    message = str(caught.value)
    assert f"missing: {unet}middle_block.0.in_layers.0.bias;" in message
    assert f"left over: {unet}extra;" in message
    assert f"misshapen: {unet}out.2.bias is (5,), expected (4,)." in message
    assert vae not in message
    with pytest.raises(WeightsError, match=rf"missing: {vae}decoder\.mid\.attn_1\.k\.weight\."):
        fastdiff.models.load(state, part="vae")
    with pytest.raises(WeightsError, match="The nearest layout is latent-diffusion"):
        fastdiff.models.load(state, layout="dit")


@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_file_that_was_cut_is_refused_whole(file, tmp_path, kept):
    """Also where the part that is wanted was saved in full."""
    content = file.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: int(kept * len(content))])
    for part in ("unet", "vae"):
        with pytest.raises(WeightsError, match="is damaged"):
            fastdiff.models.load(cut, part=part)


@pytest.mark.parametrize(
    ("changes", "keys", "millions", "heads"),
    [
        ({"context_dim": 768}, 686, 859.5, {"num_heads": 8}),
        ({"context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}, 686, 865.9,
         {"num_head_channels": 64}),
        ({"context_dim": 2048, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True,
          "attention_resolutions": (4, 2), "channel_mult": (1, 2, 4), "transformer_depth": (1, 2, 10),
          "num_classes": "sequential", "adm_in_channels": 2816}, 1680, 2567.5, {"num_head_channels": 64}),
    ],
)  # fmt: skip
def test_published_widths_need_no_config(changes, keys, millions, heads):
    """Stable Diffusion 1, 2 and XL: nothing is read, so that the tensors take no memory."""
    unet = {**UNET, "model_channels": 320, **changes}
    whole = unet_and_vae(unet, {**VAE, "ch": 128})
    assert len(whole) == keys + 248  # of the published files
    model = fastdiff.models.load(whole)
    assert abs(parameters(model) / 1e6 - millions) <= 0.05
    assert all(getattr(model.config, field) == value for field, value in heads.items())
    assert abs(parameters(fastdiff.models.load(whole, part="vae")) / 1e6 - 83.7) <= 0.05
    given = on_meta("latent-diffusion", unet)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in given.state_dict().items()}
