"""diffusers, StableDiffusionDiffEditPipeline: invert, then the masked decoding."""

from ddim_cases import grid, model, steps_of

from fastdiff.editing import diffedit, invert


def run(case):
    network, arguments = model(case)
    n = case.num_inference_steps
    times = grid(case, n)
    kept = times[-int(n * case.inpaint_strength) - 1 :]
    guided = case.guidance_scale > 1
    arguments |= dict(guidance=case.guidance_scale if guided else None, evaluate="end")
    arguments |= dict(uncond={"context": case["context_negative"]} if guided else None)
    source, target = {"context": case["context_source"]}, {"context": case["context_target"]}
    states = invert(network, case["x0"], grid=kept, cond=source, **arguments)
    x = diffedit(
        network, case["x0"], case["mask"], grid=times, strength=case.inpaint_strength, source=source, target=target,
        blend="start", **arguments,
    )  # fmt: skip
    return {
        "timesteps": steps_of(kept[:-1]),
        "inverse_timesteps": steps_of(kept[:-1])[::-1],
        "inverted_latents": states[1:].flip(0).transpose(0, 1),
        "x_out": x,
    }
