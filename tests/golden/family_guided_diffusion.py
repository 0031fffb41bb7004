"""openai/guided-diffusion: respaced DDPM and DDIM."""

from case import FLOAT32_TABLES, Case

from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import get_solver


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
    schedule = {"linear": VPDiscrete.linear, "cosine": VPDiscrete.cosine}[meta["schedule"]]()
    if meta["sampler"] == "ddim":
        solver = get_solver("ddim", eta=meta["eta"])
    else:
        solver = get_solver("ddpm", variance=meta["model_var_type"].removeprefix("FIXED_").lower())
    return Case(
        solver,
        schedule,
        times=[(n + 1) / 1000 for n in reversed(respaced(meta["respacing"]))] + [0.0],
        prediction="eps",
        tolerance=FLOAT32_TABLES,
        time_of=lambda n: (n + 1) / 1000,
    )
