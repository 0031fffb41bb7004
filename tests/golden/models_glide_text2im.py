"""openai/glide-text2im."""

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="glide", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    return {"out": model(**inputs)}
