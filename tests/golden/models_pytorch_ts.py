"""zalandoresearch/pytorch-ts."""

import torch

import fastdiff

NAMES = {"inputs": "x", "time": "t"}


def load(meta, state):
    return fastdiff.models.load(state, layout="timegrad", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    out = model(**{NAMES.get(name, name): value for name, value in inputs.items()})
    return dict.fromkeys(meta["outputs"], out)
