"""Text encoders of transformers from state dicts, as published and in openai/CLIP's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastdiff.errors import WeightsError, unknown

# The classes of text encoders in the folders of pipelines.
CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")


def library() -> Any:
    """transformers. Raises ImportError that names the extra without it."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"text encoders need transformers: pip install 'torch-fastdiff[text]' ({error})") from error
    return transformers


def text_encoder(name: str, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """A text encoder of transformers with these weights, in eval mode and without gradients.

    name: one of CLASSES. config: arguments of its config. state: as published, with "text_model." before the keys of a
    CLIPTextModel or without, with its table of position numbers or without. Raises ValueError for another class,
    WeightsError for keys that do not fit.
    """
    classes = library()
    if name not in CLASSES:
        raise unknown("text encoder", name, CLASSES)
    made = (classes.T5Config if name == "T5EncoderModel" else classes.CLIPTextConfig)(**config)
    model = getattr(classes, name)(made)
    wanted = model.state_dict().keys()
    plain = {key.removeprefix("text_model."): key for key in wanted}
    tensors = {
        plain.get(key.removeprefix("text_model."), key): value
        for key, value in state.items()
        if not key.endswith("embeddings.position_ids")
    }
    tied = {"shared.weight", "encoder.embed_tokens.weight"} & tensors.keys()
    if name == "T5EncoderModel" and tied:
        tensors = {**dict.fromkeys(("shared.weight", "encoder.embed_tokens.weight"), tensors[min(tied)]), **tensors}
    missing, left_over = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
    if missing or left_over:
        raise WeightsError(
            f"the weights do not fit {name}: missing {missing[:20] or 'none'}, left over {left_over[:20] or 'none'}"
        )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"the weights do not fit {name}: {error}") from error
    return model.eval().requires_grad_(False)


def clip_from_openai(state: Mapping[str, Tensor], *, heads: int | None = None, activation: str = "quick_gelu") -> Any:
    """The text half of a state dict of openai/CLIP as a CLIPTextModelWithProjection; keys of "visual." are passed over.

    heads: width / 64 if not given, as in all published models. activation: "quick_gelu", or "gelu" for open_clip's.
    Raises WeightsError for keys that do not fit.
    """
    first = "transformer.resblocks.0.mlp.c_fc.weight"
    for key in ("token_embedding.weight", "positional_embedding", "text_projection", first):
        if key not in state:
            raise WeightsError(f"the state dict has no {key}, which the text half of CLIP has")
    vocabulary, width = state["token_embedding.weight"].shape
    layers = {int(key.split(".")[2]) for key in state if key.startswith("transformer.resblocks.")}
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": len(state[first]),
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads or width // 64,
        "max_position_embeddings": len(state["positional_embedding"]),
        "projection_dim": state["text_projection"].shape[1],
        "hidden_act": activation,
        "bos_token_id": 0,
        "eos_token_id": 2,  # transformers' name for: pooled at the highest token, as here
        "pad_token_id": 1,
    }
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("visual.") or key in ("logit_scale", *_SIZES):
            continue
        if key == "text_projection":
            found["text_projection.weight"] = value.T.contiguous()
        elif ".attn.in_proj_" in key:
            for part, rows in zip("qkv", value.chunk(3)):
                found[_openai_key(key.replace("attn.in_proj_", f"attn.{part}_proj."))] = rows.clone()
        else:
            found[_openai_key(key)] = value
    return text_encoder("CLIPTextModelWithProjection", config, found)


_SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers in published files
_OPENAI = (
    ("transformer.resblocks.", "text_model.encoder.layers."),
    (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".c_fc.", ".fc1."),
    (".c_proj.", ".fc2."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
)


def _openai_key(key: str) -> str:
    for theirs, ours in _OPENAI:
        key = key.replace(theirs, ours)
    return key
