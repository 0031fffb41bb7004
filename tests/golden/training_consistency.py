"""Consistency models: losses, training with a moving target, schedules; progressive distillation on noise levels."""

import torch
from training_case import gradient

from fastdiff.train import rates
from fastdiff.train.losses import consistency

RNG = torch.Generator()


def process_of(meta):
    names = ("sigma_min", "sigma_max", "rho", "sigma_data")
    return consistency.ConsistencyProcess(**{name: meta[name] for name in names if name in meta})


def function(case, toy, boundary=True, times=None):
    """The toy as f(x, sigma); it is given its time, 250 log(sigma)."""

    def network(x, time):
        if times is not None:
            times.append(time)
        return toy(x, case.cond(sigma=(time / 250).exp()))

    return consistency.parametrized(network, process_of(case.meta), boundary=boundary)


def options(case, teacher):
    meta = case.meta
    return {"teacher": teacher, "solver": meta["solver"], "norm": meta["norm"], "weight": meta["weight"]}


def teacher_of(case):
    if case.meta["mode"] == "training":
        return None
    return function(case, case.network("theta_teacher", "teacher"), boundary=False)


def consistency_loss(case):
    meta, toy, times = case.meta, case.network(), []
    f = function(case, toy, meta["boundary_scalings"], times)
    target = function(case, case.network("theta_target"), meta["boundary_scalings"])
    found = consistency.consistency_terms(f, process_of(meta), case["x0"], RNG, target=target,
                                          scales=meta["num_scales"], index=case["index"].long(), noise=case["noise"],
                                          **options(case, teacher_of(case)))  # fmt: skip
    return {**found._asdict(), "x_t": found.x, "grad": gradient(found.loss, toy.theta),
            "model_times": torch.stack(times)}  # fmt: skip


def consistency_training(case):
    meta, theta, teacher = case.meta, case.leaf("theta"), teacher_of(case)
    x0, noise, index = case["x0"], case["noise"], case["index"].long()
    target, rows = theta.detach().clone(), []
    for k in range(meta["steps"]):
        decay, scales = rates.ema_and_scales(
            meta["first_step"] + k, ema=meta["target_ema_mode"], scales=meta["scale_mode"],
            start_ema=meta["start_ema"], start=meta["start_scales"], end=meta["end_scales"], total=meta["total_steps"],
            steps_per_stage=meta.get("distill_steps_per_iter", 1))  # fmt: skip
        f, goal = (function(case, case.network(weights), meta["boundary_scalings"]) for weights in (theta, target))
        loss = consistency.consistency_loss(f, process_of(meta), x0[k], RNG, target=goal, scales=scales,
                                            index=index[k], noise=noise[k], **options(case, teacher))  # fmt: skip
        theta = (theta - meta["lr"] * gradient(loss, theta)).detach().requires_grad_()
        target = decay * target + (1 - decay) * theta.detach()
        rows.append((loss.detach(), decay, float(scales)))
    losses, decays, counts = zip(*rows)
    return {"loss": torch.stack(losses), "ema": decays, "scales": counts, "theta_after": theta,
            "theta_target_after": target}  # fmt: skip


def consistency_schedule(case):
    meta = case.meta
    found = [rates.ema_and_scales(
        int(step), ema=meta["target_ema_mode"], scales=meta["scale_mode"], start_ema=meta["start_ema"],
        start=meta["start_scales"], end=meta["end_scales"], total=meta["total_steps"],
        steps_per_stage=meta["distill_steps_per_iter"]) for step in case["step"]]  # fmt: skip
    decays, counts = zip(*found)
    return {"ema": decays, "scales": counts}


def consistency_scalings(case):
    process, sigma = process_of(case.meta), case["sigma"]
    results = {}
    for prefix, boundary in (("", False), ("boundary_", True)):
        scalings = process.scalings(sigma, boundary=boundary)
        results |= {prefix + name: value for name, value in zip(("c_skip", "c_out", "c_in"), scalings)}
    return results


def karras_denoiser(case):
    meta, toy, x0, noise, sigma = case.meta, case.network(), case["x0"], case["noise"], case["sigma"]
    f = function(case, toy, meta["boundary_scalings"])
    loss, plain = (consistency.denoiser_loss(f, process_of(meta), x0, RNG, sigma=sigma, weight=weight, noise=noise)
                   for weight in (meta["weight"], "uniform"))  # fmt: skip
    return {"loss": loss, "xs_mse": plain, "grad": gradient(loss, toy.theta)}


def progressive_distillation_edm(case):
    meta, toy = case.meta, case.network()
    f, teacher = function(case, toy, False), function(case, case.network("theta_teacher", "teacher"), False)
    found = consistency.progressive_edm_terms(
        f, process_of(meta), case["x0"], RNG, teacher=teacher, scales=meta["num_scales"], norm=meta["norm"],
        weight=meta["weight"], index=case["index"].long(), noise=case["noise"])  # fmt: skip
    return {"x_t": found.x, "target": found.target, "loss": found.loss, "grad": gradient(found.loss, toy.theta)}


def improved_consistency_loss(case):
    meta, toy, process, targets = case.meta, case.network(), process_of(case.meta), []
    f = function(case, toy)

    def network(x, sigma):
        targets.append(f(x, sigma))  # the target is computed first
        return targets[-1]

    loss = consistency.improved_consistency_loss(
        network, process, case["x0"], RNG, scales=meta["num_scales"], huber_c=meta["huber_c"], weight=meta["weight"],
        index=case["index"].long(), noise=case["noise"])  # fmt: skip
    sigmas = process.grid(meta["num_scales"])
    chances = consistency.improved_indices(sigmas, mean=meta["P_mean"], std=meta["P_std"])
    return {"loss": loss, "target": targets[0], "grad": gradient(loss, toy.theta), "sigmas": sigmas,
            "index_probabilities": chances}  # fmt: skip


def improved_consistency_schedule(case):
    meta = case.meta
    total = {"start": meta["start_scales"], "end": meta["end_scales"], "total": meta["total_steps"]}
    return {"scales": [rates.improved_scales(int(step), **total) for step in case["step"]]}
