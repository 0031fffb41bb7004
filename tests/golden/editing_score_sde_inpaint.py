"""yang-song/score_sde_pytorch, controllable_generation.py: inpainting and colorisation."""

import numpy as np
import torch
from toys import TimedVP

import fastdiff
from fastdiff.editing import colorization_tensors, imputation
from fastdiff.schedules import VE
from fastdiff.solvers import get_solver


def run(case):
    low = case.eps / 2  # below it VE turns to the data
    if case.sde == "vp":
        schedule = TimedVP(float(case.beta_min), float(case.beta_max), t_min=low)
    else:
        schedule = VE(float(case.sigma_min), float(case.sigma_max), t_min=low)

    def point(time):
        return schedule.point(time / 999 if case.sde == "vp" else float(schedule.t_of_lam(-np.log(time))))

    inner = get_solver(
        "predictor-corrector",
        predictor=case.predictor.replace("_", "-"),
        corrector=case.corrector,
        snr=float(case.snr),
        n_steps_each=case.n_steps_each,
        discretization="released",
        norm="batch",
        denoise=case.denoise,
    )
    gt, noise = case["gt"], case["noise"]
    matrix = case["M"].tolist() if case.task == "colorize" else None
    tensors = {"known": gt, "mask": case["mask"]} if matrix is None else colorization_tensors(gt, matrix)
    prior = noise[0] * (case.sigma_max if case.sde == "ve" else 1.0)
    if matrix is not None:  # as released: the prior is without the first channel, then in the coordinates
        prior = prior * (1 - tensors["mask"])
    toy = case.toy
    x = fastdiff.sample(
        toy.network(point),
        prior,
        schedule=schedule,
        prediction="eps",
        solver=imputation(inner, matrix=matrix),
        grid=np.append(np.linspace(1.0, case.eps, case.N), 0.0),
        noise=noise[1:],
        tensors=tensors,
    )
    return {"x_out": x, "model_times": torch.tensor(toy.calls, dtype=torch.float64)}
