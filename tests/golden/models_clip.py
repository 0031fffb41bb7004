"""openai/CLIP's text half, converted to transformers' class."""

import torch

from fastdiff.integrations.transformers import clip_from_openai


def load(meta, state):
    return clip_from_openai(state, heads=meta["config"]["transformer_heads"])


@torch.no_grad()
def outputs(model, inputs, meta):
    out = model(inputs["text"])
    found = {"last_hidden_state": out.last_hidden_state, "text_features": out.text_embeds}
    return {name: found[name] for name in meta["outputs"]}
