"""diffusers, StableDiffusionDiffEditPipeline.generate_mask."""

import torch
from ddim_cases import grid, model, steps_of

from fastdiff.editing import diffedit_mask


def run(case):
    network, arguments = model(case)
    n = case.num_inference_steps
    t = grid(case, n)[n - int(n * case.mask_encode_strength)]
    guided = case.guidance_scale > 1
    seen = []

    def recorded(x, t, context):
        seen.append(network(x, t, context))
        return seen[-1]

    mask = diffedit_mask(
        recorded,
        case["x0"],
        t=t,
        maps=case.num_maps_per_mask,
        clip=case.mask_thresholding_ratio,
        guidance=case.guidance_scale if guided else None,
        source={"context": case["context_source"]},
        target={"context": case["context_target"]},
        uncond={"context": case["context_negative"]} if guided else None,
        noise=case["noise"][0],
        **arguments,
    )
    assert steps_of([t]) == [case.encode_timestep]
    halves = [torch.cat(out.chunk(2)[::-1]) if guided else out for out in seen]  # the original has the negative first
    return {"mask": mask, "predictions": torch.cat(halves)}
