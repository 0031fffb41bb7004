"""willisma/SiT."""

import re

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="sit", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    found = {"out": model(**inputs)}
    if "out_cfg" in meta["outputs"]:
        scale = float(re.search(r"cfg_scale=([\d.]+)", meta["source"]).group(1))
        found["out_cfg"] = model.forward_with_cfg(**inputs, cfg_scale=scale)
    return found
