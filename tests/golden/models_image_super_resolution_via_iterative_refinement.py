"""Janspiry/Image-Super-Resolution-via-Iterative-Refinement: SR3's network and the one of DDPM beside it."""

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="sr3", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    return {"out": model(inputs["x"], inputs["time"])}
