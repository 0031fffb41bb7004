"""Text encoders: what `load(part="text")` gives against the pipelines of diffusers, with random weights and
vocabularies of a few words. Nothing is downloaded."""

import json

import pytest
import torch

import fastdiff
from fastdiff import WeightsError
from fastdiff.integrations.transformers import clip_from_openai, text_encoder

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["a", "red", "apple", "and", "green", "pear", "on", "the", "table"]
SHORT, LONG = "a red apple", "a red apple and a green pear on the table and a red apple"
PROMPTS = ["a red apple", "the green pear on the table"]
CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "vocab_size": 16, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 3,
        "pad_token_id": 0}  # fmt: skip
T5 = {"d_model": 40, "d_kv": 10, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 16, "dropout_rate": 0.0}
UNET = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4}  # fmt: skip


def tokenizer(length, *, begin=True):
    """Words of the list, and an unknown one; CLIP's has a mark at the beginning too."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[B]", "[UNK]", "[E]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[B] $A [E]" if begin else "$A [E]", special_tokens=[("[B]", 1), ("[E]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", bos_token="[B]", eos_token="[E]",
        model_max_length=length)  # fmt: skip


def clip(seed, *, projected=False, **changes):
    torch.manual_seed(seed)
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return cls(transformers.CLIPTextConfig(**{**CLIP, "projection_dim": 24, **changes})).eval()


def t5(seed=5):
    torch.manual_seed(seed)
    return transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()


def vae():
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)


def stable_diffusion(**changes):
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(1, **changes), tokenizer=tokenizer(12), safety_checker=None,
        unet=diffusers.UNet2DConditionModel(**UNET, cross_attention_dim=32), feature_extractor=None,
        scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False)  # fmt: skip


def stable_diffusion_xl(**options):
    unet = diffusers.UNet2DConditionModel(
        **UNET, cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8)  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(1), text_encoder_2=clip(2, projected=True), tokenizer=tokenizer(12),
        tokenizer_2=tokenizer(12), unet=unet, scheduler=diffusers.DDIMScheduler(), **options)  # fmt: skip


def pixart(cls="PixArtAlphaPipeline"):
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, cross_attention_dim=16, sample_size=8,
        caption_channels=40)  # fmt: skip
    return getattr(diffusers, cls)(
        tokenizer=tokenizer(64, begin=False), text_encoder=t5(), vae=vae(), transformer=transformer,
        scheduler=diffusers.DDIMScheduler())  # fmt: skip


def stable_diffusion_3(*, with_t5=True):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=80,
        caption_projection_dim=16, pooled_projection_dim=48, pos_embed_max_size=8)  # fmt: skip
    encoder = transformers.T5EncoderModel(transformers.T5Config(**{**T5, "d_model": 80})).eval() if with_t5 else None
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(),
        text_encoder=clip(1, projected=True), tokenizer=tokenizer(12), text_encoder_2=clip(2, projected=True),
        tokenizer_2=tokenizer(12), text_encoder_3=encoder,
        tokenizer_3=tokenizer(64, begin=False) if with_t5 else None)  # fmt: skip


def flux():
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=40, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6))  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(),
        text_encoder=clip(1), tokenizer=tokenizer(12), text_encoder_2=t5(),
        tokenizer_2=tokenizer(64, begin=False))  # fmt: skip


def saved(pipe, folder):
    pipe.save_pretrained(folder)
    return fastdiff.models.load(folder, part="text")


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_stable_diffusion(tmp_path, masked):
    """The mask is seen where the encoder's config says so, as in checkpoints after Stable Diffusion 1 and 2."""
    pipe = stable_diffusion(use_attention_mask=masked)
    encode = saved(pipe, tmp_path)
    expected, none = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    same(encode(PROMPTS)["context"], expected)
    same(encode(None)["context"], none[:1])
    same(encode("")["context"], none[:1])
    same(encode(SHORT)["context"], expected[:1])
    assert encode(SHORT).keys() == {"context"}


@torch.no_grad()
def test_long_prompts_are_cut_with_a_warning(tmp_path):
    pipe = stable_diffusion()
    encode = saved(pipe, tmp_path)
    with pytest.warns(UserWarning, match="a prompt has 16 tokens, of which text_encoder sees 12"):
        found = encode(LONG)
    same(found["context"], pipe.encode_prompt(LONG, "cpu", 1, False)[0])


@pytest.mark.parametrize("zeros", [True, False])
@torch.no_grad()
def test_stable_diffusion_xl(tmp_path, zeros):
    pipe = stable_diffusion_xl(force_zeros_for_empty_prompt=zeros)
    encode = saved(pipe, tmp_path)
    context, none, pooled, none_pooled = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
    found, empty = encode(PROMPTS), encode(None)
    same(found["context"], context)
    same(found["text_embeds"], pooled)
    same(empty["context"], none[:1])
    same(empty["text_embeds"], none_pooled[:1])
    assert empty["context"].any() != zeros
    ids = pipe._get_add_time_ids((128, 128), (0, 0), (128, 128), torch.float32, text_encoder_projection_dim=24)
    same(found["time_ids"], ids.repeat(2, 1))
    sized = encode(SHORT, size=(100, 90), crop=(3, 4), target=(64, 80))
    assert sized["time_ids"].tolist() == [[100, 90, 3, 4, 64, 80]]


@torch.no_grad()
def test_a_condition_goes_into_the_unet_of_its_folder(tmp_path):
    encode = saved(stable_diffusion_xl(), tmp_path)
    unet = fastdiff.models.load(tmp_path, part="unet")
    schedule = fastdiff.schedules.VPDiscrete.scaled_linear()
    out = fastdiff.sample(unet, (2, 4, 16, 16), schedule=schedule, prediction="eps", solver="ddim", steps=2, seed=0,
                          guidance=5.0, cond=encode(PROMPTS), uncond=encode([""] * 2))  # fmt: skip
    assert out.isfinite().all()


@pytest.mark.parametrize(("cls", "length"), [("PixArtAlphaPipeline", 120), ("PixArtSigmaPipeline", 300)])
@torch.no_grad()
def test_pixart(tmp_path, cls, length):
    """Prompts in lower case, and the mask of padding for the transformer."""
    pipe = pixart(cls)
    encode = saved(pipe, tmp_path)
    hidden, mask, none, none_mask = pipe.encode_prompt(["  A red APPLE", SHORT + " and"])
    found = encode(["  A red APPLE", SHORT + " and"])
    assert found["encoder_hidden_states"].shape == (2, length, 40)
    same(found["encoder_hidden_states"], hidden)
    assert torch.equal(found["encoder_attention_mask"], mask)
    assert mask.sum(1).tolist() == [4, 5]
    same(encode(None)["encoder_hidden_states"], none[:1])
    assert torch.equal(encode(None)["encoder_attention_mask"], none_mask[:1])
    assert encode(SHORT, max_length=9)["encoder_hidden_states"].shape == (1, 9, 40)


@pytest.mark.parametrize("with_t5", [True, False])
@torch.no_grad()
def test_stable_diffusion_3(tmp_path, with_t5):
    pipe = stable_diffusion_3(with_t5=with_t5)
    encode = saved(pipe, tmp_path)
    options = {"device": "cpu", "do_classifier_free_guidance": True, "max_sequence_length": 20}
    hidden, none, pooled, none_pooled = pipe.encode_prompt(PROMPTS, None, None, **options)
    found, empty = encode(PROMPTS, max_length=20), encode(None, max_length=20)
    same(found["encoder_hidden_states"], hidden)
    same(found["pooled_projections"], pooled)
    same(empty["encoder_hidden_states"], none[:1])
    same(empty["pooled_projections"], none_pooled[:1])
    assert found["encoder_hidden_states"].shape == (2, 12 + 20, 80)


@torch.no_grad()
def test_flux(tmp_path):
    pipe = flux()
    encode = saved(pipe, tmp_path)
    hidden, pooled, _ = pipe.encode_prompt(PROMPTS, None, max_sequence_length=20)
    found = encode(PROMPTS, max_length=20)
    same(found["encoder_hidden_states"], hidden)
    same(found["pooled_projections"], pooled)
    assert encode(SHORT)["encoder_hidden_states"].shape == (1, 512, 40)


def test_dtype_and_gradients(tmp_path):
    stable_diffusion().save_pretrained(tmp_path)
    encode = fastdiff.models.load(tmp_path, part="text", dtype=torch.bfloat16)
    context = encode(SHORT)["context"]
    assert context.dtype is torch.bfloat16
    assert not context.requires_grad
    assert not encode.training


def test_published_keys_of_clip():
    """With "text_model." and the old table of position numbers, or without."""
    state = clip(1).state_dict()
    plain = {key.removeprefix("text_model."): value for key, value in state.items()}
    for prefix in ("", "text_model."):
        given = {f"{prefix}{key}": value for key, value in plain.items()}
        given[f"{prefix}embeddings.position_ids"] = torch.arange(12)[None]
        made = text_encoder("CLIPTextModel", CLIP, given).state_dict()
        assert all(torch.equal(made[key], value) for key, value in state.items())


@pytest.mark.parametrize("key", ["shared.weight", "encoder.embed_tokens.weight"])
def test_t5s_tied_embedding_may_be_stored_once(key):
    state = t5().state_dict()
    stored = {name: value for name, value in state.items() if "embed_tokens" not in name and name != "shared.weight"}
    made = text_encoder("T5EncoderModel", T5, {**stored, key: state["shared.weight"]})
    assert torch.equal(made.state_dict()["shared.weight"], state["shared.weight"])


def test_weights_that_do_not_fit():
    state = clip(1).state_dict()
    first, *_ = state
    with pytest.raises(WeightsError, match=r"missing \['.*token_embedding.weight'\], left over \['other'\]"):
        text_encoder("CLIPTextModel", CLIP, {**{k: v for k, v in state.items() if k != first}, "other": state[first]})
    with pytest.raises(WeightsError, match="size mismatch"):
        text_encoder("CLIPTextModel", {**CLIP, "vocab_size": 17}, state)
    with pytest.raises(ValueError, match="unknown text encoder 'CLIPTextModels'; did you mean"):
        text_encoder("CLIPTextModels", CLIP, state)
    with pytest.raises(WeightsError, match="no positional_embedding"):
        clip_from_openai({"token_embedding.weight": torch.zeros(2, 64)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("unet"), "neither a unet nor a transformer"),
        (lambda index: index.update(text_encoder=["transformers", "BertModel"]), "text_encoder, a BertModel, is not"),
        (lambda index: index.update(text_encoder=["transformers", "T5EncoderModel"]), "a T5EncoderModel, is not known"),
        (lambda index: index.update(unet=["diffusers", "Other"]), "how Other takes the text .* is not known"),
        (lambda index: index.update(text_encoder=[None, None]), "names no text encoder"),
        (
            lambda index: index.update(text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
            "no folder text_encoder_2",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, change, message):
    stable_diffusion().save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises((ValueError, WeightsError), match=message):
        fastdiff.models.load(tmp_path, part="text")


def test_what_is_no_folder_and_no_prompt(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="needs a pipeline's folder"):
        fastdiff.models.load(tmp_path, part="text")
    with pytest.raises(WeightsError, match="needs the folder of a pipeline, got"):
        fastdiff.models.load({}, part="text")
    with pytest.raises(ValueError, match="is of layout diffusers, got 'dit'"):
        fastdiff.models.load(tmp_path, part="text", layout="dit")
    encode = saved(stable_diffusion(), tmp_path)
    with pytest.raises(TypeError, match="prompt must be a string"):
        encode([SHORT, None])
    with pytest.raises(ValueError, match="empty list"):
        encode([])
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"torch-fastdiff\[text\]"):
        fastdiff.models.load(tmp_path, part="text")
