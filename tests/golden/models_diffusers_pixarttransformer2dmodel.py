"""diffusers' PixArtTransformer2DModel, which stays theirs."""

import diffusers
import torch

PASSES = ("attention", "ada_layer_norm", "residual_ada_layer_norm", "linear")  # of `optimize`, that must match


def load(meta, state):
    model = diffusers.PixArtTransformer2DModel(**meta["config"])
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def outputs(model, inputs, meta):
    sizes = {name: inputs[name] for name in ("resolution", "aspect_ratio") if name in inputs}
    others = {name: value for name, value in inputs.items() if name not in sizes}
    added = {"resolution": None, "aspect_ratio": None, **sizes}
    return {"sample": model(**others, added_cond_kwargs=added).sample}
