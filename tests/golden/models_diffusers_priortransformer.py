"""diffusers' PriorTransformer."""

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="diffusers", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    names = {"hidden_states": "x", "timestep": "t", "proj_embedding": "embedding", "encoder_hidden_states": "text",
             "attention_mask": "mask"}  # fmt: skip
    found = {"out": model(**{names[key]: value for key, value in inputs.items()})}
    if "latents" in meta["outputs"]:
        found["latents"] = model.denormalise(found["out"])
    return found
