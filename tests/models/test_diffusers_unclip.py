"""unCLIP's prior and decoder, and Shap-E's prior, against diffusers' own, with random weights."""

import pytest
import torch
from conftest import relative_error

import fastdiff
from fastdiff.models.parts.attention import Masked
from fastdiff.models.unclip import UnCLIPDecoder

diffusers = pytest.importorskip("diffusers")
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel  # noqa: E402
from test_diffusers import TOLERANCE, random_model, saved  # noqa: E402

SIZE = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 12, "num_embeddings": 5}
SHAPE = {**SIZE, "additional_embeddings": 0, "encoder_hid_proj_type": None, "added_emb_type": None,
         "norm_in_type": "layer", "time_embed_act_fn": "gelu", "time_embed_dim": 24, "embedding_proj_dim": 10,
         "clip_embed_dim": 14}  # fmt: skip
# The config and whether what is denoised is a sequence.
PRIORS = [
    (SIZE, False),
    ({**SIZE, "embedding_proj_norm_type": "layer", "clip_embed_dim": 12, "time_embed_act_fn": "mish"}, False),
    ({**SIZE, "norm_in_type": "layer", "additional_embeddings": 3, "added_emb_type": None}, False),
    (SHAPE, True),
    ({**SHAPE, "embedding_proj_norm_type": "layer", "num_embeddings": 7, "additional_embeddings": 2}, True),
]
JOINT = {"block_out_channels": (32, 48), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 24,
         "attention_head_dim": 8, "class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift",
         "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), "in_channels": 3,
         "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "out_channels": 6,
         "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}  # fmt: skip
DECODERS = [
    JOINT,
    {**JOINT, "only_cross_attention": True, "resnet_time_scale_shift": "default", "attention_head_dim": (4, 8)},
    {**JOINT, "only_cross_attention": (True, False), "norm_eps": 1e-6, "mid_block_scale_factor": 2**0.5,
     "down_block_types": ("SimpleCrossAttnDownBlock2D",) * 2, "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 2},
    {**JOINT, "mid_block_only_cross_attention": True, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
     "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
]  # fmt: skip
UNTOLD = ("norm_num_groups", "norm_eps", "attention_head_dim", "class_embed_type")
TEXT_PROJECTION = {"clip_extra_context_tokens": 3, "clip_embeddings_dim": 10, "time_embed_dim": 128,
                   "cross_attention_dim": 24}  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("config", "sequence"), PRIORS)
@torch.no_grad()
def test_prior(config, sequence, masked, tmp_path):
    theirs = random_model(diffusers.PriorTransformer, config)
    theirs.clip_mean.normal_()
    theirs.clip_std.normal_()
    theirs.positional_embedding.normal_()
    ours = saved(theirs, tmp_path)
    length = config["num_embeddings"] + config.get("additional_embeddings", 4)
    length -= 2 if masked else 0  # diffusers' mask is for the conditions too, and its positions then as well
    x = torch.randn(2, length, 12) if sequence else torch.randn(2, 12)
    text = None if "encoder_hid_proj_type" in config else torch.randn(2, 5, 12)
    mask = torch.arange(config["num_embeddings"]) < torch.tensor([[2], [4]]) if masked else None
    arguments = [x, torch.tensor([3, 977]), torch.randn(2, config.get("embedding_proj_dim", 12)), text, mask]
    expected = theirs(*arguments).predicted_image_embedding
    out = ours(*arguments)
    assert relative_error(out, expected) <= TOLERANCE
    assert relative_error(ours.denormalise(out), theirs.post_process_latents(expected)) <= TOLERANCE


@pytest.mark.parametrize("config", DECODERS)
@torch.no_grad()
def test_joint_attention(config, tmp_path):
    """Keys and values of the context beside the pixels' or alone, with and without a mask."""
    theirs = random_model(diffusers.UNet2DConditionModel, config)
    ours = saved(theirs, tmp_path)
    x, t, context, y = torch.randn(2, 3, 12, 16), torch.tensor([3, 977]), torch.randn(2, 5, 24), torch.randn(2, 128)
    expected = theirs(x, t, context, class_labels=y).sample
    assert relative_error(ours(x, t, context, y), expected) <= TOLERANCE
    if config.get("only_cross_attention") or config.get("mid_block_only_cross_attention"):
        return  # diffusers makes its mask longer than these keys, and fails
    mask = torch.arange(5) < torch.tensor([[2], [4]])
    expected = theirs(x, t, context, class_labels=y, attention_mask=mask).sample
    assert relative_error(ours(x, t, Masked(context, mask), y), expected) <= TOLERANCE


@torch.no_grad()
def test_masked_context_of_transformers(tmp_path):
    from test_diffusers import CROSS

    config = {**CROSS, "encoder_hid_dim": 10, "encoder_hid_dim_type": "text_proj"}
    theirs = random_model(diffusers.UNet2DConditionModel, config)
    ours = saved(theirs, tmp_path)
    x, t, context = torch.randn(2, 4, 16, 16), torch.tensor([3, 977]), torch.randn(2, 5, 10)
    mask = torch.arange(5) < torch.tensor([[2], [4]])
    expected = theirs(x, t, context, encoder_attention_mask=mask).sample
    assert relative_error(ours(x, t, Masked(context, mask)), expected) <= TOLERANCE


@pytest.mark.parametrize("guided", [False, True])
@torch.no_grad()
def test_decoder(guided, tmp_path):
    """As the pipeline calls it; guided: the images' embeddings are those of the second half of the batch."""
    projection = random_model(UnCLIPTextProjModel, TEXT_PROJECTION)
    projection.learned_classifier_free_guidance_embeddings.normal_()
    unet = random_model(diffusers.UNet2DConditionModel, JOINT)
    conditioning = saved(projection, tmp_path / "text_proj")
    ours = UnCLIPDecoder(conditioning, saved(unet, tmp_path / "decoder")).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 977])
    image, text, tokens = torch.randn(1 if guided else 2, 10), torch.randn(2, 10), torch.randn(2, 6, 10)
    mask = torch.arange(6) < torch.tensor([[2], [4]])
    context, added = projection(image_embeddings=image, prompt_embeds=text, text_encoder_hidden_states=tokens,
                                do_classifier_free_guidance=guided)  # fmt: skip
    whole = torch.nn.functional.pad(mask, (3, 0), value=True)
    expected = unet(x, t, context, class_labels=added, attention_mask=whole).sample
    assert relative_error(ours(x, t, image, text, tokens, mask), expected) <= TOLERANCE
    found = fastdiff.optimize(ours)(x, t, image, text, tokens, mask)
    assert relative_error(found, expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("cls", "config", "told"),
    [
        (diffusers.PriorTransformer, SIZE, ("num_attention_heads",)),
        (diffusers.PriorTransformer, SHAPE, ("num_attention_heads", "additional_embeddings", "time_embed_act_fn")),
        (UnCLIPTextProjModel, TEXT_PROJECTION, ()),
        *((diffusers.UNet2DConditionModel, config, UNTOLD) for config in DECODERS),
    ],
)  # fmt: skip
def test_state_dicts_without_a_config(cls, config, told):
    """Only what the weights do not tell is given."""
    theirs = random_model(cls, config)
    whole = fastdiff.models.load(theirs.state_dict(), config={**theirs.config, "_class_name": cls.__name__})
    ours = fastdiff.models.load(theirs.state_dict(), config={field: theirs.config[field] for field in told})
    assert str(ours) == str(whole)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in ours.state_dict().items())
