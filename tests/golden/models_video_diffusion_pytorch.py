"""lucidrains/video-diffusion-pytorch."""

import torch

import fastdiff


def load(meta, state):
    return fastdiff.models.load(state, layout="video-diffusion", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    """Outputs named in `call` are of calls with those arguments; cond_scale is of the original's guidance."""
    arguments = {{"time": "t"}.get(name, name): value for name, value in inputs.items()}
    found = {}
    for output in meta["outputs"]:
        call = meta.get("call", {}).get(output, {})
        call = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in call.items()}
        function = model.forward_with_cond_scale if "cond_scale" in call else model
        found[output] = function(**arguments, **call)
    return found
