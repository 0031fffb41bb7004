"""bloc97/CrossAttentionControl: its matching of tokens, and its attention."""

import torch
from prompts import padded

from fastdiff.editing.alignment import matching_tokens
from fastdiff.editing.prompt_control import cross_attention_control
from fastdiff.models.parts.attention import Place


def run(case):
    source, target = padded(case)
    weights = {place: weight for place, weight in case.token_weights}
    control = cross_attention_control(source, target, steps=1, token_weights=weights)
    alone = cross_attention_control(source, target, steps=1, token_weights=weights, cross=0.0, self_attention=0.0)
    mapper = matching_tokens(source, target)
    found = {"edit_mask": (mapper != -1).double(), "edit_indices": mapper.clamp(min=0), "weights": control.weights[0]}
    for kind in ("self", "cross"):
        q, k, v = (torch.stack([case[f"{kind}_{x}_source"], case[f"{kind}_{x}_edit"]]) for x in "qkv")
        q = q * (case.scale * q.shape[-1] ** 0.5)  # a controller's maps are of 1 / sqrt(D)
        place = Place("layer", kind, (q.shape[2],))
        found[f"{kind}_out_source"], found[f"{kind}_out_edit"] = control.attend(place, q, k, v)
        if kind == "cross":
            found["cross_out_weights_only"] = alone.attend(place, q, k, v)[1]
    return found
