"""CompVis/latent-diffusion."""

import torch

import fastdiff


def load(meta, state):
    beside = {field: meta[field] for field in ("embed_dim", "n_embed") if field in meta}
    return fastdiff.models.load(state, layout="latent-diffusion", config={**meta["config"], **beside})


@torch.no_grad()
def outputs(model, inputs, meta):
    if "moments" not in meta["outputs"]:
        return {"out": model(**inputs)}
    posterior = model.encode(inputs["x"])
    return {"moments": posterior.moments, "reconstruction": model.decode(posterior.mean)}
