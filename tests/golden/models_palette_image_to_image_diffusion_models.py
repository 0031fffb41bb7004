"""Janspiry/Palette-Image-to-Image-Diffusion-Models."""

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="palette", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    return {"out": model(inputs["x"], inputs["gammas"])}
