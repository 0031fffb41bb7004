"""lllyasviel/ControlNet: the ControlNet and its U-Net, with the keys of whole checkpoints."""

import torch

import fastdiff
from fastdiff.models.controlnet import ControlledUNet

OTHERS = {"controlnet": ("out_channels",), "unet": ("hint_channels",)}  # arguments of the other network's constructor
LAYOUTS = {"controlnet": "controlnet", "unet": "latent-diffusion"}


def load(meta, state):
    def part(name):
        config = {field: value for field, value in meta["config"].items() if field not in OTHERS[name]}
        return fastdiff.models.load(state, part=name, layout=LAYOUTS[name], config=config)

    return part("unet"), part("controlnet")


@torch.no_grad()
def outputs(model, inputs, meta):
    unet, net = model
    x, t, context, hint = (inputs[name] for name in ("x", "timesteps", "context", "hint"))
    control = net(x, t, context, hint=hint)
    parts = (*control.skips, control.middle)
    found = {f"control_{index}": value for index, value in enumerate(parts) if f"control_{index}" in meta["outputs"]}
    for name in meta["outputs"].keys() - found.keys():
        call = meta.get("call", {}).get(name, {})
        scales, given = call.get("control_scales"), {} if "control" in call else {"hint": hint}
        found[name] = ControlledUNet(
            unet,
            {"hint": net},
            scales=None if scales is None else {"hint": scales},
            only_middle=call.get("only_mid_control", False),
        )(x, t, context, **given)
    return found
