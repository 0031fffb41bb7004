"""NVlabs/edm."""

import torch

import fastdiff


def load(meta, state):
    """The resolution, channels and classes, which are arguments of the original as well, are those of the inputs."""
    _, channels, size, _ = meta["inputs"]["x"]
    labels = meta["inputs"].get("labels", [0, 0])[1]
    implied = {"img_resolution": size, "img_channels": channels, "label_dim": labels}
    name = next((word for word in meta["source"].split() if word.endswith("Precond")), "EDMPrecond")
    return fastdiff.models.load(state, layout="edm", config={"class_name": name, **implied, **meta["config"]})


@torch.no_grad()
def outputs(model, inputs, meta):
    return {"denoised": model(inputs["x"], inputs["sigma"], inputs.get("labels"))}
