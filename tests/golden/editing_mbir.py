"""HJ-harry/DiffusionMBIR: the sampler with its corrections last."""

import numpy as np
import torch
from slices import projection

from fastdiff.editing import mbir
from fastdiff.schedules import VE
from fastdiff.solvers import get_solver


def run(case):
    assert case.admm_iterations == 1
    schedule, toy = VE(float(case.sigma_min), float(case.sigma_max), t_min=case.eps / 2), case.toy
    solver = get_solver(
        "predictor-corrector",
        predictor=case.predictor.replace("_", "-"),
        corrector=case.corrector,
        snr=case.snr,
        n_steps_each=case.n_steps_each,
        norm="batch",
        discretization="released",
    )
    noise = case["noise"]
    x = mbir(
        toy.network(lambda sigma: schedule.point(float(schedule.t_of_lam(-np.log(sigma))))),
        case["measurement"],
        projection(case["A"]),
        torch.zeros_like(case["x_out"]),
        x_init=case.sigma_max * noise[0],
        noise=noise[1:],
        lamb=case.lamb,
        rho=case.rho,
        tv_axes=case.tv_axes,
        inner_iterations=case.cg_iterations,
        final_consistency=case.final_consistency,
        solver=solver,
        schedule=schedule,
        prediction="eps",
        grid=np.append(np.linspace(1.0, case.eps, case.N), 0.0),
    )
    return {"x_out": x, "model_times": torch.tensor(toy.calls, dtype=torch.float64)}
