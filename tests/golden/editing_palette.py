"""Janspiry/Palette-Image-to-Image-Diffusion-Models: the network is called with the cumulative product."""

import numpy as np
import torch

import fastdiff
from fastdiff.editing import palette
from fastdiff.prediction import of_noise_level
from fastdiff.process.schedules import Point
from fastdiff.schedules import VPDiscrete


def process(schedule, n_timestep, linear_start=1e-4, linear_end=2e-2):
    n = n_timestep
    if schedule == "linear":
        return VPDiscrete.linear(n, start=linear_start, end=linear_end)
    if schedule == "quad":
        return VPDiscrete.scaled_linear(n, start=linear_start, end=linear_end)
    if schedule == "cosine":
        return VPDiscrete.cosine(n)
    betas = np.full(n, linear_end)
    first = int(n * int(schedule.removeprefix("warmup")) / 100)
    betas[:first] = np.linspace(linear_start, linear_end, first)
    return VPDiscrete(betas)


def point(abar):
    return Point(0.0, abar**0.5, (1 - abar) ** 0.5, 0.0)


def run(case):
    schedule, toy = process(**case.beta_schedule), case.toy
    x = fastdiff.sample(
        toy.network(point),
        case["x_init"],
        schedule=schedule,
        prediction=of_noise_level(2),
        solver=palette("ddpm"),
        grid=np.arange(schedule.num_steps, -1, -1) / schedule.num_steps,
        threshold=1.0 if case.clip_denoised else None,
        noise=case["noise"],
        tensors={"known": case["y0"], "mask": 1 - case["mask"]},
    )
    return {"x_out": x, "model_alphas_cumprod": torch.tensor(toy.calls, dtype=torch.float64)}
