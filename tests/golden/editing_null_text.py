"""google/prompt-to-prompt, NullInversion.null_optimization."""

import torch
from ddim_cases import grid, model, steps_of

from fastdiff.editing import invert, null_text_inversion


def run(case):
    assert case.optimizer == "adam"
    network, arguments = model(case)
    times = grid(case, case.num_steps)
    cond, uncond = {"context": case["context"]}, {"context": case["context_null"]}
    states = invert(network, case["x0"], grid=times, cond=cond, evaluate="end", **arguments)
    run = dict(grid=times, guidance=case.guidance_scale, cond=cond, uncond=uncond, **arguments)
    settings = dict(inner_steps=case.num_inner_steps, early_stop=case.early_stop_epsilon)
    found = null_text_inversion(network, states, **run, **settings)
    without = null_text_inversion(network, states, **run, inner_steps=0)
    return {
        "timesteps": steps_of(times[:-1]),
        "inner_iterations": [len(losses) for losses in found.losses],
        "losses": torch.tensor([loss for losses in found.losses for loss in losses], dtype=torch.float64),
        "null_embeddings": torch.cat([uncond["context"] for uncond in found.uncond]),
        "trajectory": found.states.reshape(case["trajectory"].shape),
        "x_without": without.states[-1],
    }
