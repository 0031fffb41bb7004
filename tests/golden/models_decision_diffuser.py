"""anuragajay/decision-diffuser."""

import torch

import fastdiff

NAMES = {"time": "t"}


def load(meta, state):
    return fastdiff.models.load(state, layout="decision-diffuser", config=meta["config"])


@torch.no_grad()
def outputs(model, inputs, meta):
    """Outputs named in `call` are of calls with those arguments: force_dropout leaves the returns out."""
    arguments = {NAMES.get(name, name): value for name, value in inputs.items() if name != "cond"}
    found = {}
    for output in meta["outputs"]:
        call = {"force_dropout": False, "use_dropout": False, **meta.get("call", {}).get(output, {})}
        assert call.keys() == {"force_dropout", "use_dropout"}
        assert not call["use_dropout"]
        found[output] = model(**({**arguments, "returns": None} if call["force_dropout"] else arguments))
    return found
