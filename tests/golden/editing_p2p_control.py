"""google/prompt-to-prompt, null_text_w_ptp.ipynb: the controllers on maps."""

import torch
from prompts import bounds_of, prompts_of, weights_of

from fastdiff.editing.alignment import equalizer
from fastdiff.editing.prompt_control import PromptEdit, prompt_edit
from fastdiff.models.parts.attention import Place


def run(case):
    prompts, length, steps = prompts_of(case), case.max_words, case.num_steps
    kind = case.controller.removeprefix("reweight-")
    edited = kind if kind != "reweight" else "refine"
    made = prompt_edit(
        prompts, steps=steps, length=length, edit=edited, cross=bounds_of(case, prompts[1:]),
        self_attention=case.self_replace_steps, tail="diagonal",
    )  # fmt: skip
    mappers, own, equalizers = made.mappers, made.own, None
    if kind == "reweight":  # of the source's maps, whatever the prompts are
        mappers, own = torch.eye(length, dtype=torch.float64).expand_as(mappers), torch.zeros_like(own)
    if case.controller.startswith("reweight"):  # the original has one equalizer, of the second prompt
        equalizers = equalizer(prompts[1], weights_of(case, prompts[1]), length)[None]
    control = PromptEdit(
        mappers, own, made.alphas, made.self_steps, max_self_pixels=case.max_self_pixels, equalizers=equalizers,
        keep=lambda place: True,
    )  # fmt: skip
    found = {}
    for number, layer in enumerate(case.layers):
        place = Place(f"{layer['place']}.{number}", "cross" if layer["cross"] else "self", (layer["pixels"],))
        outs = []
        for control.step, maps in enumerate(case[f"in_{number}"]):
            assert control.wants(place)
            rows = maps.reshape(len(prompts), case.heads, *maps.shape[1:])
            outs.append(control.edit(place, rows).reshape(maps.shape))
        found[f"out_{number}"] = torch.stack(outs)
        found[f"store_{number}"] = control.sums[place.name].reshape(outs[0].shape)
    return found
