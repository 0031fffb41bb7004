"""daspartho/MagicMix, and the algorithm of the paper."""

from ddim_cases import grid, model, steps_of

from fastdiff.editing import magicmix


def run(case):
    network, arguments = model(case)
    times, seen = grid(case, case.steps), []

    def recorded(x, t, context):
        seen.append(round(float(t[0])))
        return network(x, t, context)

    x = magicmix(
        recorded, case["x0"], grid=times, k_min=case.kmin, k_max=case.kmax, v=case.v, guidance=case.guidance_scale,
        cond={"context": case["context"]}, uncond={"context": case["context_null"]}, noise=case["noise"],
        step_from=case.step_from, **arguments,
    )  # fmt: skip
    return {"x_out": x, "timesteps": steps_of(times[:-1]), "model_times": seen}
