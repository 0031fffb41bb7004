"""WeilunWang/semantic-diffusion-model: out, and out_null, whose map is zeros."""

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="sdm", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    x, t, y = (inputs[name] for name in ("x", "timesteps", "y"))
    found = {"out": model(x, t, y)}
    if "out_null" in meta["outputs"]:
        found["out_null"] = model(x, t, torch.zeros_like(y))
    return found
