"""google/prompt-to-prompt, NullInversion.ddim_loop: inversion with the conditional prediction alone."""

from ddim_cases import grid, model, steps_of

from fastdiff.editing import invert


def run(case):
    network, arguments = model(case)
    times = grid(case, case.num_steps)
    cond = {"context": case["context"]}
    states = invert(network, case["x0"], grid=times, cond=cond, evaluate="end", **arguments)
    latents = states.squeeze(1)
    return {"latents": latents.reshape(case["latents"].shape), "timesteps": steps_of(times[:-1])}
