"""huggingface/transformers' text encoders, which stay their classes."""

import torch

from fastdiff.integrations.transformers import text_encoder


def load(meta, state):
    words = meta["source"].split()
    name = words[next(i for i, word in enumerate(words) if word.endswith(".py")) + 1].strip(";,")
    return text_encoder(name, meta["config"], state)


@torch.no_grad()
def outputs(model, inputs, meta):
    out = model(**inputs, output_hidden_states=True)
    projected = getattr(out, "text_embeds", None)
    found = {
        **out,
        "pooled": projected if projected is not None else getattr(out, "pooler_output", None),
        "penultimate": out.hidden_states[-2],
    }
    return {name: found[name] for name in meta["outputs"]}
