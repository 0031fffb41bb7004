"""HJ-harry/MCG_diffusion. The last step's own noise is drawn, and not used."""

from ancestral import Ancestral

from fastdiff.editing import inpaint, mcg, replacement


def run(case):
    run = Ancestral(case)
    noise = case["noise"]
    noise = noise[[*range(len(noise) - 2), len(noise) - 1]]
    gt, mask = case["gt"], case["mask"]
    if case.sample_method == "vanilla":
        return run.results(run.sample(replacement(run.solver, level="start"), noise, {"known": gt, "mask": mask}))
    x = inpaint(
        run.model, gt, mask, method=mcg(run.solver, level="start", norm="batch"), noise=noise, x_init=case["x_init"],
        limits=None, **run.arguments,
    )  # fmt: skip
    return run.results(x)
