"""DDPM and Improved DDPM: the losses, bits per dimension, and steps drawn by their losses."""

from dataclasses import replace

import torch
from training_case import gradient

from fastdiff.process.prediction import get_prediction
from fastdiff.schedules import Respaced, VPDiscrete
from fastdiff.train import losses
from fastdiff.train.chain import previous
from fastdiff.train.losses import weighting
from fastdiff.train.losses.resampling import LossSecondMoments
from fastdiff.train.losses.vlb import ddpm_terms
from fastdiff.train.process import Process

RNG = torch.Generator()
MEANS = {"EPSILON": "eps", "START_X": "x0", "VELOCITY": "v"}
VARIANCES = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED": "learned", "LEARNED_RANGE": "learned-range"}


def table(name, n):
    """The tables `linear` and `cosine` of the data."""
    return VPDiscrete.cosine(n) if name == "cosine" else VPDiscrete.linear(n, start=0.1 / n, end=20 / n)


def process_of(meta):
    scale = 1000 / meta["steps"] if meta["rescale_timesteps"] else 1.0
    schedule = Respaced.sections(table(meta["schedule"], meta["steps"]), meta["respacing"], time_scale=scale)
    mean = meta["model_mean_type"]
    prediction = previous(schedule) if mean == "PREVIOUS_X" else get_prediction(MEANS[mean])
    return Process(schedule, replace(prediction, split=meta["model_var_type"].startswith("LEARNED")))


def weight_of(meta):
    if meta["weighting"] == "p2":
        return weighting.p2(meta["p2_gamma"], meta["p2_k"])
    return weighting.min_snr(meta["gamma"]) if meta["weighting"] == "min-snr" else weighting.plain


def ddpm_loss(case):
    meta, times = case.meta, []
    toy, x0, noise, t, process = case.network(), case["x0"], case["noise"], case["t"].long(), process_of(case.meta)

    def network(x, time):
        times.append(time)
        return toy(x, case.cond(time=time))

    terms = ddpm_terms(network, process, x0, RNG, variance=VARIANCES[meta["model_var_type"]], steps=t, noise=noise,
                       kind=meta["loss_type"].lower().replace("_", "-"), weighting=weight_of(meta))  # fmt: skip
    weights = [weight_of(meta)(process, p) for p in process.at((t.double() + 1) / process.schedule.num_steps)]
    return {"loss": terms.loss, "mse": terms.mse, "vb": terms.vb, "model_times": times[0], "weight": weights,
            "grad": gradient(terms.loss, toy.theta)}  # fmt: skip


def bits_per_dim(case):
    toy = case.network()
    found = losses.bits_per_dim(lambda x, time: toy(x, case.cond(time=time)), process_of(case.meta), case["x0"], RNG,
                                variance=VARIANCES[case.meta["model_var_type"]], clip=case.meta["clip_denoised"],
                                noise=case["noise"])  # fmt: skip
    return {"total_bpd": found.total, "prior_bpd": found.prior, "vb": found.vb, "xstart_mse": found.x0_mse,
            "mse": found.eps_mse}  # fmt: skip


def loss_second_moment_resampler(case):
    meta = case.meta
    sampler = LossSecondMoments(meta["steps"], history=meta["history_per_term"], uniform=meta["uniform_prob"])
    weights, importance = [], []
    for t, loss, sampled in zip(case["t"].long(), case["losses"], case["sampled"].long()):
        sampler.update(t, loss)
        weights.append(sampler.weights())
        importance.append(sampler.importance(sampled))
    return {"weights": torch.stack(weights), "importance": torch.stack(importance)}
