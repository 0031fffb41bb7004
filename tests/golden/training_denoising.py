"""Noise levels and weights of denoising: EDM's losses, the score SDEs', and score matching."""

import numpy as np
import torch
from training_case import gradient

from fastdiff.process.prediction import edm_preconditioned
from fastdiff.schedules import EDM, VE, SubVP, VPDiscrete, VPLinear
from fastdiff.train import losses, rates
from fastdiff.train.losses import denoising_loss, score_of_energy, sliced_loss
from fastdiff.train.losses.edm import edm_levels, ve_levels, ve_preconditioned, vp_levels, vp_preconditioned
from fastdiff.train.losses.weighting import annealed, likelihood, plain
from fastdiff.train.process import Process

RNG = torch.Generator()


def edm_levels_of(kind, u, args):
    if kind == "edm":
        return edm_levels(u, mean=args["P_mean"], std=args["P_std"])
    if kind == "vp":
        return vp_levels(u, beta_d=args["beta_d"], beta_min=args["beta_min"], first=args["epsilon_t"])
    return ve_levels(u, sigma_min=args["sigma_min"], sigma_max=args["sigma_max"])


def edm_process(kind, args):
    if kind == "edm":
        prediction = edm_preconditioned(args["sigma_data"])
    elif kind == "vp":
        prediction = vp_preconditioned(args["beta_d"], args["beta_min"], levels=args["M"])
    else:
        prediction = ve_preconditioned()
    return Process(EDM(), prediction)


def edm_loss(case):
    meta = case.meta
    toy, x0, noise, times = case.network(), case["x0"], case["noise"], []
    sigma = edm_levels_of(meta["loss"], case["u"], meta["loss_args"])
    process = edm_process(meta["precond"], meta["precond_args"])

    def network(x, t):
        times.append(t)
        return toy(x, case.cond(c_noise=t, sigma=sigma))

    sd = meta["loss_args"].get("sigma_data", 0.5)
    options = {"kind": meta["loss"], "sigma": sigma, "sigma_data": sd, "noise": noise, "reduction": "none"}
    loss = losses.edm_loss(network, process, x0, RNG, **options)
    one = losses.edm_loss(lambda x, t: x * 0 + 1, Process.of(EDM(), "x0"), x0 * 0, RNG, **options)  # error 1
    return {"loss": loss, "grad": gradient(loss, toy.theta), "sigma": sigma, "c_noise": times[0],
            "weight": one.flatten(1)[:, 0]}  # fmt: skip


def edm_training(case):
    meta = case.meta
    images, u, noise = case["images"].double() / 127.5 - 1, case["u"], case["noise"]
    theta = case.leaf("theta")
    ema, nimg = theta.detach().clone(), meta["first_nimg"]
    optimizer = torch.optim.Adam([theta], lr=meta["lr"], betas=tuple(meta["betas"]), eps=meta["adam_eps"])
    process = Process(EDM(), edm_preconditioned(meta["sigma_data"]))
    per_image, after, averaged = [], [], []
    for step in range(meta["steps"]):
        optimizer.zero_grad()
        total = 0
        for k in range(meta["accumulation_rounds"]):
            sigma = edm_levels(u[step, k], mean=meta["P_mean"], std=meta["P_std"])
            toy = case.network(theta)

            def network(x, t, toy=toy, sigma=sigma):
                return toy(x, case.cond(c_noise=t, sigma=sigma))

            loss = losses.edm_loss(network, process, images[step, k], RNG, sigma=sigma, noise=noise[step, k],
                                   sigma_data=meta["sigma_data"], reduction="sum")  # fmt: skip
            per_image.append(loss.mean().detach())
            total = total + loss.mean() * meta["loss_scaling"] / meta["accumulation_rounds"]
        total.backward()
        optimizer.param_groups[0]["lr"] = rates.ramped(meta["lr"], nimg, 1000 * meta["lr_rampup_kimg"])
        optimizer.step()
        batch = images.shape[2] * meta["accumulation_rounds"]
        half_life = 1000 * meta["ema_halflife_kimg"]
        decay = rates.half_life_decay(batch, half_life, done=nimg, ramp=meta["ema_rampup_ratio"])
        ema = theta.detach() + decay * (ema - theta.detach())
        nimg += batch
        after.append(theta.detach().clone())
        averaged.append(ema)
    return {"loss_per_image": torch.stack(per_image).view(meta["steps"], -1), "theta_after": torch.stack(after),
            "theta_ema": torch.stack(averaged)}  # fmt: skip


def sde(meta):
    """The process, and the reduction that its `reduce_mean` names."""
    if meta["sde"] == "ve":
        process = Process.of(VE(meta["sigma_min"], meta["sigma_max"], t_min=meta["eps"]), "score")
    else:
        schedule = VPLinear if meta["sde"] == "vp" else SubVP
        process = Process.of(schedule(meta["beta_min"], meta["beta_max"], t_min=meta["eps"]), "eps")
    return process, "mean" if meta["reduce_mean"] else "half-sum"


def score_sde_loss(case):
    meta = case.meta
    toy, x0, noise = case.network(), case["x0"], case["noise"]
    process, reduction = sde(meta)
    results = {}
    if meta["continuous"]:
        t = case["u"] * (1 - meta["eps"]) + meta["eps"]
        points = process.at(t)
        sigma = torch.tensor([p.sigma for p in points], dtype=torch.float64)
        g2 = [process.schedule.drift_diffusion(p.t)[1] for p in points]
        results = {"t": t, "std": sigma, "g2": g2, "model_times": sigma if meta["sde"] == "ve" else 999 * t}
        cond = case.cond(t=t, sigma_t=sigma)
    else:
        label, n = case["label"].double(), meta["N"]
        if meta["sde"] == "ve":
            t = 1 - label / (n - 1)
        else:
            process = Process.of(VPDiscrete(np.linspace(meta["beta_min"] / n, meta["beta_max"] / n, n)), "eps")
            t = (label + 1) / n
        results = {"std": [p.sigma for p in process.at(t)], "model_times": label}
        cond = case.cond(label=label)
    loss = denoising_loss(lambda x, t: toy(x, cond), process, x0, RNG, times=t, noise=noise, reduction=reduction,
                          weighting=likelihood if meta["likelihood_weighting"] else plain)  # fmt: skip
    return {**results, "loss_per_sample": loss, "loss": loss.mean(), "grad": gradient(loss, toy.theta)}


def score_sde_training(case):
    meta = case.meta
    process, reduction = sde(meta)
    x0, noise, theta = case["x0"], case["noise"], case.leaf("theta")
    times = case["u"] * (1 - meta["eps"]) + meta["eps"]
    optimizer = torch.optim.Adam([theta], lr=meta["lr"], betas=tuple(meta["betas"]), eps=meta["adam_eps"])
    ema, seen, after, averaged = theta.detach().clone(), [], [], []
    for k in range(meta["steps"]):
        toy, t = case.network(theta), times[k]
        sigma = torch.tensor([p.sigma for p in process.at(t)], dtype=torch.float64)
        loss = denoising_loss(lambda x, _, toy=toy, t=t, sigma=sigma: toy(x, case.cond(t=t, sigma_t=sigma)), process,
                              x0[k], RNG, times=t, noise=noise[k], reduction=reduction,
                              weighting=likelihood if meta["likelihood_weighting"] else plain).mean()  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        theta.grad *= rates.clip_factor(theta.grad.norm(), meta["grad_clip"])
        optimizer.param_groups[0]["lr"] = rates.ramped(meta["lr"], meta["first_step"] + k, meta["warmup"])
        optimizer.step()
        decay = rates.warm_decay(meta["ema_decay"], k + 1)
        ema = decay * ema + (1 - decay) * theta.detach()
        seen.append(loss.detach())
        after.append(theta.detach().clone())
        averaged.append(ema)
    return {"loss": torch.stack(seen), "theta_after": torch.stack(after), "theta_ema": torch.stack(averaged)}


def score_matching(case):
    meta = case.meta
    kind, toy, x0 = meta["kind"], case.network(), case["x0"]
    results, cond = {}, None
    process = times = None
    if "label" in case:
        sigmas = torch.from_numpy(np.geomspace(meta["sigma_begin"], meta["sigma_end"], meta["num_classes"]))
        label = case["label"].long()
        process, times, cond = Process.of(EDM(), "score"), sigmas[label], case.cond(label=label)
        results["sigmas"] = sigmas
    elif "dsm" in kind:
        process, times = Process.of(EDM(), "score"), torch.full((len(x0),), meta["sigma"], dtype=torch.float64)

    def network(x, *t):
        return toy(x, None if cond is None else cond.repeat(len(x) // len(cond), 1))

    if meta["output"] == "energy":
        network = score_of_energy(network)
    if "dsm" in kind:
        power = {"anneal-dsm": meta.get("anneal_power"), "dsm-score": 0.0, "dsm-energy": 4.0}[kind]
        loss = denoising_loss(network, process, x0, RNG, times=times, noise=case["noise"], reduction="half-sum",
                              weighting=annealed(power))  # fmt: skip
    else:
        vectors = case["vectors"]
        direction = meta.get("noise_type", "gaussian" if kind.endswith("vr") else "unit")
        direction = "rademacher" if direction == "radermacher" else direction  # as the original spells it
        loss = sliced_loss(network, process, x0, RNG, particles=len(vectors) // len(x0), times=times, vectors=vectors,
                           direction=direction, variance_reduced=kind.endswith("vr"),
                           noise=case["noise"] if process else None)  # fmt: skip
    return {**results, "loss": loss.mean(), "grad": gradient(loss, toy.theta)}
