"""openai/guided-diffusion."""

import json
import re

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="guided-diffusion", config=meta["config"])


def outputs(model, inputs, meta):
    if "logits" not in meta["outputs"]:
        with torch.no_grad():
            return {"out": model(**inputs)}
    x = inputs["x"].requires_grad_()
    logits = model(x, inputs["t"])
    found = {"logits": logits.detach()}
    if "grad" in meta["outputs"]:  # of log p(y | x)
        y = torch.tensor(json.loads(re.search(r"y=(\[[\d, ]*\])", meta["source"]).group(1)))
        chosen = logits.log_softmax(1)[torch.arange(len(y)), y]
        found["grad"] = torch.autograd.grad(chosen.sum(), x)[0]
    return found
