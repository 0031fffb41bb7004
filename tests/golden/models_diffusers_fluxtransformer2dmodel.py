"""diffusers' FluxTransformer2DModel, which stays theirs."""

import diffusers
import torch

PASSES = ("attention", "ada_layer_norm", "residual_ada_layer_norm", "linear")  # of `optimize`, that must match


def load(meta, state):
    model = diffusers.FluxTransformer2DModel(**meta["config"])
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def outputs(model, inputs, meta):
    return {"sample": model(**inputs).sample}
