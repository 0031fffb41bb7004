"""Text encoders: what `load(part="text")` gives against the pipelines of diffusers, with random weights and
vocabularies of a few words. Nothing is downloaded."""

import json

import pytest
import torch

import fastdiff
from fastdiff import WeightsError
from fastdiff.integrations.transformers import clip_from_openai, text_encoder

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from integrations.text_pipelines import (
    CLIP,
    LONG,
    PROMPTS,
    SHORT,
    T5,
    clip,
    flux,
    pixart,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    t5,
)  # fmt: skip


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
