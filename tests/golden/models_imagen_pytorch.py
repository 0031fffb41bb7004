"""lucidrains/imagen-pytorch."""

import torch

import fastdiff

# What the original calls the arguments, by what they are here.
NAMES = {"time": "t", "lowres_cond_img": "low_res", "lowres_noise_times": "low_res_t", "text_embeds": "text",
         "text_mask": "mask"}  # fmt: skip


def load(meta, state):
    return fastdiff.models.load(state, layout="imagen", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    arguments = {NAMES.get(key, key): value for key, value in inputs.items()}
    return {name: called(model, arguments, **meta.get("call", {}).get(name, {})) for name in meta["outputs"]}


def called(model, arguments, cond_scale=1.0, cond_drop_prob=0.0):
    """With probability 0 or 1 of leaving the text out; guidance as forward_with_cond_scale has it."""
    batch = len(arguments["x"])
    assert cond_drop_prob in (0, 1)
    nothing = torch.zeros(batch, dtype=torch.bool)
    out = model(**arguments, keep_text=nothing if cond_drop_prob else None)
    if cond_scale == 1:
        return out
    none = model(**arguments, keep_text=nothing)
    return none + (out - none) * cond_scale
