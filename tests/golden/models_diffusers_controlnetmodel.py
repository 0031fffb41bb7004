"""diffusers' ControlNetModel and the UNet2DConditionModel that it controls."""

import torch

import fastdiff
from fastdiff.models.controlnet import ControlledUNet

OWN = {
    "controlnet": ("controlnet_", "conditioning_", "global_pool_conditions"),
    "unet": ("out_channels", "up_block_types"),
}
ARGUMENTS = {"sample": "x", "timestep": "t", "encoder_hidden_states": "context"}


def load(meta, state):
    def part(name, other, class_name):
        config = {field: value for field, value in meta["config"].items() if not field.startswith(OWN[other])}
        tensors = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        return fastdiff.models.load(tensors, layout="diffusers", config={"_class_name": class_name, **config})

    return part("unet", "controlnet", "UNet2DConditionModel"), part("controlnet", "unet", "ControlNetModel")


@torch.no_grad()
def outputs(model, inputs, meta):
    unet, net = model
    hint = inputs["controlnet_cond"]
    names = {name: name.replace("/", ".").rpartition(".")[2] for name in inputs if name != "controlnet_cond"}
    arguments = {ARGUMENTS.get(short, short): inputs[name] for name, short in names.items()}  # of added_cond_kwargs too
    control = net(**arguments, hint=hint)
    found = {**{f"down_{index}": value for index, value in enumerate(control.skips)}, "mid": control.middle}
    found = {name: value for name, value in found.items() if name in meta["outputs"]}
    for name in meta["outputs"].keys() - found.keys():
        call = meta.get("call", {}).get(name, {})
        scales = {"hint": call.get("conditioning_scale", 1.0)}
        wrapped = ControlledUNet(unet, {"hint": net}, scales=scales, guess=call.get("guess_mode", False))
        found[name] = wrapped(**arguments, hint=hint)
    return found
