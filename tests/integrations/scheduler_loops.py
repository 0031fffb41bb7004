"""Loops of schedulers with a made-up network, and the settings that diffusers' classes have."""

from __future__ import annotations

import inspect

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from fastdiff.integrations.diffusers import scheduler_for  # noqa: E402

MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LMSDiscreteScheduler")


# Class -> settings to draw from, beside those that most have.
SIGMAS = {"use_karras_sigmas": [False, True], "use_exponential_sigmas": [False, True], "use_beta_sigmas": [False, True]}


PREDICTIONS = ["epsilon", "sample", "v_prediction"]


SPACINGS = ["leading", "linspace", "trailing"]


COMMON = {
    "beta_schedule": ["linear", "scaled_linear"],
    "prediction_type": PREDICTIONS,
    "timestep_spacing": SPACINGS,
    "steps_offset": [0, 1],
}


DDIM = {**COMMON, "beta_schedule": ["linear", "squaredcos_cap_v2"], "clip_sample": [True, False],
        "clip_sample_range": [1.0, 0.5], "set_alpha_to_one": [True, False],
        "rescale_betas_zero_snr": [False, True]}  # fmt: skip


DPM = {**COMMON, **SIGMAS, "solver_order": [1, 2, 3], "solver_type": ["midpoint", "heun"], "algorithm_type":
       ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"], "final_sigmas_type": ["zero", "sigma_min"],
       "lower_order_final": [True, False], "euler_at_final": [False, True]}  # fmt: skip


FLOW = {"shift": [1.0, 3.0], "stochastic_sampling": [False, True], **SIGMAS}


SETTINGS = {
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DDIMInverseScheduler": {"prediction_type": PREDICTIONS, "clip_sample": [True, False]},
    "CogVideoXDDIMScheduler": {"prediction_type": PREDICTIONS, "rescale_betas_zero_snr": [False, True]},
    "DDPMScheduler": {**DDIM, "variance_type": ["fixed_small", "fixed_small_log", "fixed_large"]},
    "DDPMParallelScheduler": {**DDIM, "variance_type": ["fixed_small", "fixed_large"]},
    "EulerDiscreteScheduler": {**COMMON, **SIGMAS, "interpolation_type": ["linear", "log_linear"],
                               "timestep_type": ["discrete", "continuous"], "final_sigmas_type": ["zero", "sigma_min"],
                               "rescale_betas_zero_snr": [False, True]},
    "EulerAncestralDiscreteScheduler": {**COMMON, "rescale_betas_zero_snr": [False, True]},
    "HeunDiscreteScheduler": {**COMMON, **SIGMAS, "clip_sample": [False, True]},
    "KDPM2DiscreteScheduler": {**COMMON, **SIGMAS},
    "KDPM2AncestralDiscreteScheduler": {**COMMON, **SIGMAS},
    "LMSDiscreteScheduler": {**COMMON, **SIGMAS},
    "PNDMScheduler": {**COMMON, "skip_prk_steps": [True, False], "set_alpha_to_one": [True, False]},
    "IPNDMScheduler": {},
    "DPMSolverMultistepScheduler": {**DPM, "lambda_min_clipped": [-float("inf"), -5.1], "use_lu_lambdas": [False]},
    "DPMSolverSinglestepScheduler": DPM,
    "DPMSolverMultistepInverseScheduler": DPM,
    "DEISMultistepScheduler": {**COMMON, **SIGMAS, "solver_order": [1, 2, 3]},
    "UniPCMultistepScheduler": {**COMMON, **SIGMAS, "solver_order": [1, 2, 3], "solver_type": ["bh1", "bh2"],
                                "final_sigmas_type": ["zero", "sigma_min"], "disable_corrector": [[], [0, 1]],
                                "lower_order_final": [True, False]},
    "SASolverScheduler": {**COMMON, "predictor_order": [1, 2, 3], "corrector_order": [1, 2, 3]},
    "LCMScheduler": {**COMMON, "clip_sample": [False, True]},
    "TCDScheduler": {**COMMON},
    "CMStochasticIterativeScheduler": {"clip_denoised": [True, False]},
    "EDMEulerScheduler": {"prediction_type": ["epsilon", "v_prediction"], "sigma_schedule": ["karras", "exponential"]},
    "EDMDPMSolverMultistepScheduler": {"solver_order": [1, 2, 3], "solver_type": ["midpoint", "heun"],
                                       "algorithm_type": ["dpmsolver++", "sde-dpmsolver++"]},
    "FlowMatchEulerDiscreteScheduler": FLOW,
    "FlowMatchHeunDiscreteScheduler": {"shift": [1.0, 3.0]},
    "FlowMatchLCMScheduler": {"shift": [1.0, 3.0]},
    "UnCLIPScheduler": {"prediction_type": ["epsilon", "sample"], "clip_sample": [True, False]},
}  # fmt: skip


def loop(scheduler, steps, dtype=torch.float64, begin=0, seed=0, **arguments):
    """States and predicted x0 of a loop with a made-up network."""
    scheduler.set_timesteps(steps)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    names = inspect.signature(scheduler.step).parameters
    arguments = {key: value for key, value in arguments.items() if key in names}
    if "generator" in names:
        arguments["generator"] = torch.Generator().manual_seed(seed + 1)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 6, 8, generator=generator, dtype=torch.float64).to(dtype)
    x, found = x * float(getattr(scheduler, "init_noise_sigma", 1.0)), []
    for t in scheduler.timesteps[begin:]:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        result = scheduler.step(0.7 * torch.tanh(scaled), t, x, **arguments)
        x = result.prev_sample
        assert x.dtype == dtype
        found.append(x)
        if hasattr(result, "pred_original_sample"):
            found.append(result.pred_original_sample)
    return torch.stack(found)


def same(ours, theirs, bound):
    """Each state within a part of the largest value of diffusers' state."""
    assert theirs.isfinite().all()
    largest = abs(theirs).flatten(1).amax(1)[(..., *[None] * (theirs.ndim - 1))]
    assert (abs(ours - theirs) <= bound * largest).all()


def tensor(seed, *shape):
    return torch.randn(shape or (2, 4, 6, 8), generator=torch.Generator().manual_seed(seed))


def both(name, options=None, steps=6):
    """diffusers' scheduler and ours, with their steps chosen."""
    theirs = getattr(diffusers, name)(**(options or {}))
    ours, reason = scheduler_for(theirs)
    assert ours is not None, reason
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps)
    return theirs, ours
