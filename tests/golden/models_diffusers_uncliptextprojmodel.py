"""diffusers' UnCLIPTextProjModel and the UNet2DConditionModel that it conditions."""

import torch

import fastdiff
from fastdiff.models.unclip import UnCLIPDecoder


def load(meta, state):
    parts = [
        fastdiff.models.load(
            {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")},
            layout="diffusers",
            config={"_class_name": name, **meta["config"][part]},
        )
        for part, name in (("text_proj", "UnCLIPTextProjModel"), ("decoder", "UNet2DConditionModel"))
    ]
    assert all(key.startswith(("text_proj.", "decoder.")) for key in state)
    return UnCLIPDecoder(*parts)


@torch.no_grad()
def outputs(model, inputs, meta):
    given = [inputs[key] for key in ("image_embeddings", "prompt_embeds", "text_encoder_hidden_states")]
    context, added = model.conditioning(*given)
    sample = model(inputs["sample"], inputs["timestep"], *given, inputs["text_mask"])
    return {"encoder_hidden_states": context, "additive_clip_time_embeddings": added, "sample": sample}
