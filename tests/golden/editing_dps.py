"""DPS2022/diffusion-posterior-sampling. Uniform draws are asked for as normal ones, and DDIM's are not."""

import torch
from ancestral import Ancestral

from fastdiff.editing import dps
from fastdiff.editing.operators import AveragePooling, Blurring, Masking, Resizing, gaussian_kernel


class LiftedResizing(Resizing):
    """With the nearest pixels as its lift, as released."""

    def lift(self, y):
        rows, columns = (len(part.T) // len(part) for part in (self.rows, self.columns))
        return y.repeat_interleave(rows, -2).repeat_interleave(columns, -1)


def operator_of(case):
    if case.operator == "inpainting":
        return Masking(case["mask"])
    if case.operator == "gaussian_blur":
        return Blurring(gaussian_kernel(case.kernel_size, float(case.intensity)))
    if case.resize_kernel == "box":
        return AveragePooling(case.factor)
    return LiftedResizing(case["R_rows"], case["R_cols"])


def run(case):
    run, noise = Ancestral(case), case["noise"]
    count = case.num_sampling if case.method == "ps+" else 0
    draws = []
    for step in range(len(noise)):
        if case.sampler == "ddpm" and step < len(noise) - 1:
            draws.append(noise[step])
        if count:
            draws += list(torch.special.ndtri(case["uniform"][step * count : (step + 1) * count]))
    distances = []
    x = dps(
        run.model,
        case["measurement"],
        operator_of(case),
        case["x_init"],
        scale=case.scale,
        measurement="poisson-released" if case.noiser == "poisson" and case.method != "ps+" else "gaussian",
        perturbations=count,
        project=case.method == "mcg",
        norm="batch",
        x_init=case["x_init"],
        solver=run.solver,
        noise=draws,
        measurement_noise=case["noise_measurement"] if case.method == "mcg" else None,
        distances=distances,
        **run.arguments,
    )
    found = {**run.results(x), "distances": torch.stack(distances)}
    if case.operator == "gaussian_blur":
        found["kernel"] = gaussian_kernel(case.kernel_size, float(case.intensity))
    return found
