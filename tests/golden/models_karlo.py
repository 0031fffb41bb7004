"""kakaobrain/karlo."""

import torch

import fastdiff
from fastdiff.models.karlo import KarloUNet

# What the original calls the arguments, by what they are here.
NAMES = {
    "timesteps": "t", "y": "image", "txt_feat": "text", "txt_feat_seq": "tokens", "text_emb": "embedding",
    "text_enc": "text",
}  # fmt: skip


def load(meta, state):
    return fastdiff.models.load(state, layout="karlo", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    names = {key: name for key, name in NAMES.items() if not (key == "y" and isinstance(model, KarloUNet))}
    arguments = {names.get(key, key): value for key, value in inputs.items()}
    found = {"out": model(**arguments)}
    if "out_cf" in meta["outputs"]:
        found["out_cf"] = model(**{**arguments, "image": None})
    return found
