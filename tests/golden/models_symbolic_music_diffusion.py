"""magenta/symbolic-music-diffusion."""

import torch

import fastdiff

NAMES = {"inputs": "x"}


def load(meta, state):
    return fastdiff.models.load(state, layout="symbolic-music", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    out = model(**{NAMES.get(name, name): value for name, value in inputs.items()})
    return dict.fromkeys(meta["outputs"], out)
