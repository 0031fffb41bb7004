"""diffusers' UNetMotionModel."""

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="diffusers", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    x, t, context = (inputs[name] for name in ("sample", "timestep", "encoder_hidden_states"))
    more = {name: inputs[name] for name in ("timestep_cond", "text_embeds", "time_ids") if name in inputs}
    return {"sample": model(x, t, context, **more)}
