"""NVlabs/DiffPure. torchsde calls the network once more, in the first step of every repetition."""

import numpy as np
import torch
from toys import VARIANCES, TimedVP

from fastdiff.editing import purify, purifying_langevin
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import get_solver


def arguments_of(case):
    """(schedule, from the network's time to the schedule's, arguments of `purify`)."""
    if case.runner in ("ddpm", "guided"):
        learned = case.model_var_type == "LEARNED_RANGE"
        options = {
            "solver": get_solver("ddpm", variance=VARIANCES[case.model_var_type]),
            "prediction": "eps+variance" if learned else "eps",
            "threshold": 1.0 if case.clip_denoised else None,
        }
        return case.process, lambda n: (n + 1) / 1000, options
    schedule = TimedVP(float(case.beta_min), float(case.beta_max), t_min=case.t_end)
    forward = VPDiscrete(np.linspace(case.beta_min / 1000, case.beta_max / 1000, 1000))
    options = {"prediction": "eps", "step": case.step_size or case.dt, "end": case.t_end, "forward": forward}
    if case.runner == "ldsde":
        keys = ("score_time", "sigma2", "lambda_ld", "eta")
        options["solver"] = purifying_langevin(**{key: case.meta[key] for key in keys})
    elif case.runner == "ode":
        options["solver"] = get_solver("euler-maruyama", probability_flow=True)
    return schedule, lambda time: time / 999, options


def run(case):
    schedule, time_of, options = arguments_of(case)
    toy = case.toy
    model = toy.network(lambda time: schedule.point(time_of(time)), variance=options["prediction"] == "eps+variance")
    x = first = case["x"]
    noises = case["noise"].chunk(case.sample_step)
    results, calls = [], []
    for noise in noises:
        given = noise.__getitem__ if case.runner != "ode" else lambda number, noise=noise: noise[0]
        anchor = {"anchor": first} if case.runner == "ldsde" else {}
        x = purify(model, x, case.t / 1000, schedule=schedule, noise=given, **anchor, **options)
        results.append(x)
        again = toy.calls[:1] if case.runner in ("sde", "ldsde") else []
        calls += again + toy.calls
        toy.calls.clear()
    stored = case["model_times"]
    calls = torch.tensor(calls, dtype=torch.float64)
    return {"x_out": torch.stack(results), "model_times": calls if stored.is_floating_point() else calls.round()}
