"""lucidrains/DALLE2-pytorch."""

import torch

import fastdiff

# What the original calls the arguments, by what they are here.
NAMES = {"image_embed": "x", "diffusion_timesteps": "t", "text_embed": "text", "text_encodings": "tokens"}
DROPPED = {"text_cond_drop_prob": "keep_text", "image_cond_drop_prob": "keep_image"}


def load(meta, state):
    return fastdiff.models.load(state, layout="dalle2", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    arguments = {NAMES.get(key, key): value for key, value in inputs.items()}
    return {name: called(model, arguments, **meta.get("call", {}).get(name, {})) for name in meta["outputs"]}


def called(model, arguments, cond_scale=1.0, **dropped):
    """With probabilities 0 and 1 of leaving a condition out; guidance as forward_with_cond_scale has it."""
    batch = len(arguments["x"])
    assert set(dropped.values()) <= {0, 1}
    keep = {DROPPED[key]: torch.full((batch,), value == 0) for key, value in dropped.items()}
    out = model(**arguments, **keep)
    if cond_scale == 1:
        return out
    none = model(**arguments, **{name: torch.zeros(batch, dtype=torch.bool) for name in DROPPED.values()})
    return none + (out - none) * cond_scale
