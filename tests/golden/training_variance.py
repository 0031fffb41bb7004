"""Analytic-DPM and its extension: moments, variances, losses, the bound, samples and trajectories."""

import numpy as np
import torch
from training_bound import table
from training_case import gradient

from fastdiff.schedules import VPLinear
from fastdiff.train import variance
from fastdiff.train.losses.covariance import covariance_terms
from fastdiff.train.process import Process

RNG = torch.Generator()


def network_of(case, toy):
    """The toy as a function of x and the schedule's time, n - 1."""
    return lambda x, time: toy(x, case.cond(n=time + 1, N=case.meta["N"], shift=case.meta.get("shift", 0)))


def reverse_options(case):
    meta = case.meta
    found = {"output": meta.get("output", "eps"), "sampler": meta.get("sampler", "ddpm"), "eta": meta.get("eta", 1.0),
             "variance": meta.get("reverse_variance", "optimal"), "average": meta.get("average", False)}  # fmt: skip
    if "ms_eps" in case:
        found["eps_square"] = case["ms_eps"]
    return found


def analytic_dpm_moments(case):
    meta, schedule = case.meta, table(case.meta["schedule"], case.meta["N"])
    squares = variance.eps_mean_squares(network_of(case, case.network()), schedule, case["x0"], RNG,
                                        noise=case["noise"])  # fmt: skip
    mean, bars = squares.mean(1), variance.Bars(schedule)
    s, t = case["s"].long().numpy(), case["t"].long().numpy()
    covariance = bars.x0_covariance(t, mean.numpy()[t])
    covariance = covariance.clip(0, 1) if meta["clip_cov_x0"] else covariance
    return {"eps_mean_square": squares, "ms_eps": mean,
            **{f"variance_{name}": torch.from_numpy(bars.optimal(s, t, covariance, eta=eta))
               for name, eta in (("ddpm", 1.0), ("ddim", 0.0), ("ddim_half", 0.5))}}  # fmt: skip


def extended_analytic_dpm(case):
    meta = case.meta
    step = variance.reverse_step(network_of(case, case.network()), table(meta["schedule"], meta["N"]), case["x_t"],
                                 meta["s"], meta["t"], clip=meta["clip"], **reverse_options(case))  # fmt: skip
    return step._asdict()


def extended_analytic_dpm_loss(case):
    meta, x0, noise, theta = case.meta, case["x0"], case["noise"], case.leaf("theta")
    if meta["timing"] == "continuous":
        t = case["u"] * (1 - meta["t_init"]) + meta["t_init"]
        process = Process.of(VPLinear(meta["beta_min"], meta["beta_max"]), "eps")
        values = {"t": t}
    else:
        n = case["n"].double()
        process, t = Process.of(table(meta["schedule"], meta["N"]), "eps"), n / meta["N"]
        values = {"n": n, "N": meta["N"]}
    results, mean = {"t": t}, (meta["timing"], meta["criterion"]) == ("continuous", "dsm")
    for k in range(max(meta["sgd_steps"], 1)):
        toy = case.network(theta)
        terms = covariance_terms(lambda x, _, toy=toy: toy(x, case.cond(**values)), process, x0, RNG,
                                 criterion=meta["criterion"], output=meta["output"], ratio=meta["ratio"], times=t,
                                 noise=noise, mean=mean)  # fmt: skip
        step = gradient(terms.loss, theta)
        if k == 0:
            results |= {"loss": terms.loss, "loss_first": terms.first, "loss_second": terms.second,
                        "ratio": terms.ratio, "grad": step}  # fmt: skip
        theta = (theta - meta["lr"] * step).detach().requires_grad_()
    return {**results, "theta_after": theta}


def analytic_dpm_elbo(case):
    meta = case.meta
    terms = variance.nelbo(network_of(case, case.network()), table(meta["schedule"], meta["N"]), case["x0"], RNG,
                           timesteps=case["timesteps"].tolist(), noise=case["noise"], clip=meta["clip_x0"],
                           **reverse_options(case))  # fmt: skip
    return {"terms": terms, "nelbo": terms.sum(0)}


def analytic_dpm_sampler(case):
    meta, schedule = case.meta, table(case.meta["schedule"], case.meta["N"])
    timesteps = variance.trajectory("linear", schedule, meta["steps"])
    x, used = variance.sample(network_of(case, case.network()), schedule, case["x_init"], RNG, timesteps=timesteps,
                              noise=case["noise"], clip=True, clip_steps=meta["clip_sigma_idx"],
                              clip_pixel=meta["clip_pixel"], **reverse_options(case))  # fmt: skip
    return {"timesteps": timesteps, "x_out": x, "variances": used}


def analytic_dpm_trajectory(case):
    meta = case.meta
    squares = np.asarray(case["ms_eps"]) if "ms_eps" in case else None
    schedule = table(meta["schedule"], meta["N"])
    return {"timesteps": variance.trajectory(meta["kind"], schedule, meta["steps"], eps_square=squares)}
