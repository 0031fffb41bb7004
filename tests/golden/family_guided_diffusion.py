"""openai/guided-diffusion: respaced DDPM and DDIM, with clipping, learned variances and classifiers."""

from dataclasses import replace

import numpy as np
from case import FLOAT32_TABLES, Case

from fastdiff.prediction import PREDICTIONS
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import get_solver


class Float32Bars(VPDiscrete):
    """alpha and sigma from alpha_bar in float32, as the original's DDIM takes them: near the data, 1 - alpha_bar has
    four digits left."""

    def alpha(self, t):
        return np.sqrt(np.exp(2 * self.log_alpha(t)).astype(np.float32).astype(np.float64))

    def sigma(self, t):
        return np.sqrt(1 - self.alpha(t) ** 2)


def with_float32_tables(prediction, exact):
    """The prediction with 1 / alpha and sigma / alpha as the original's tables hold them. At the start of the cosine
    schedule, where alpha is 5e-5, x0 is the difference of two numbers 20,000 times larger, and their rounding is worth
    up to 1.5e-5 of the sample."""

    def x0(p):
        p = exact.point(p.t)
        return float(np.float32(1 / p.alpha)), -float(np.float32(p.sigma / p.alpha))

    return replace(PREDICTIONS[prediction], x0=x0)


def respaced(respacing, total=1000):
    """The training steps of `timestep_respacing`, increasing: "ddim25", "20" or "10,8,5"."""
    if respacing.startswith("ddim"):
        stride = next(s for s in range(1, total) if len(range(0, total, s)) == int(respacing[4:]))
        return list(range(0, total, stride))
    steps, first = [], 0
    counts = [int(c) for c in respacing.split(",")]
    for i, count in enumerate(counts):
        size = total // len(counts) + (1 if i < total % len(counts) else 0)
        stride = (size - 1) / (count - 1) if count > 1 else 1
        steps += [first + round(stride * j) for j in range(count)]
        first += size
    return steps


def case(name, meta):
    exact = {"linear": VPDiscrete.linear, "cosine": VPDiscrete.cosine}[meta["schedule"]]()
    if meta["sampler"] == "p":
        kinds = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED_RANGE": "learned"}
        solver = get_solver("ddpm", variance=kinds[meta["model_var_type"]])
    elif meta["sampler"] == "ddim":
        solver = get_solver("ddim", eta=meta["eta"])
    else:
        solver = get_solver(meta["sampler"], order=meta["order"])
    learned = meta["model_var_type"] == "LEARNED_RANGE"
    return Case(
        solver,
        Float32Bars(exact.betas) if meta["sampler"] == "ddim" else exact,
        times=[(n + 1) / 1000 for n in reversed(respaced(meta["respacing"]))] + [0.0],
        prediction=with_float32_tables("eps+variance" if learned else "eps", exact),
        tolerance=FLOAT32_TABLES,
        time_of=lambda n: (n + 1) / 1000,
        variance=(lambda x: x.tanh()) if learned else None,
        classifier=(meta["target_component"], meta["classifier_scale"]) if "classifier_scale" in meta else None,
        data_schedule=exact,
        arguments={"threshold": 1.0} if meta.get("clip_denoised") else {},
    )
