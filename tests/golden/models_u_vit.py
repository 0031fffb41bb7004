"""baofff/U-ViT."""

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="u-vit", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    condition = {name: inputs[name] for name in ("y", "context") if name in inputs}
    return {"out": model(inputs["x"], inputs["timesteps"], **condition)}
