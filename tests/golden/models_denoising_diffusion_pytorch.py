"""lucidrains/denoising-diffusion-pytorch."""

import torch

import fastdiff

# What the original calls the arguments, by what they are here.
NAMES = {"time": "t", "x_self_cond": "self_cond", "classes": "y", "class_labels": "y"}


def load(meta, state):
    return fastdiff.models.load(state, layout="ddp", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    """Outputs named in `call` are of calls with those arguments; a plain call of out_null is without classes."""
    arguments = {NAMES.get(name, name): value for name, value in inputs.items()}
    calls = {name: dict(meta.get("call", {}).get(name, {})) for name in meta["outputs"]}
    return {name: called(model, arguments, call, none="null" in name) for name, call in calls.items()}


def called(model, arguments, call, none):
    """With probability 0 or 1 of leaving the class out; guidance as forward_with_cond_scale has it."""
    dropped = call.pop("cond_drop_prob", 1.0 if none else 0.0)
    assert dropped in (0, 1)
    if "cond_scale" in call:
        guided, null = model.forward_with_cond_scale(**arguments, **call)
        return null if none else guided
    assert not call
    if dropped == 1:
        arguments = {**arguments, "y": model.unconditional(len(arguments["x"]))}
    return model(**arguments)
