"""Solvers against numbers from the original authors' code (tests/data/golden, or the folder in FASTDIFF_GOLDEN).

Cases are read from their metadata, never listed by name: a folder with other cases of the same form works as it is.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.grids import karras, logsnr
from fastdiff.schedules import VE, VPDiscrete
from fastdiff.solvers import SOLVERS, get_solver

FOLDER = Path(os.environ.get("FASTDIFF_GOLDEN") or Path(__file__).parents[1] / "data" / "golden")
CASES = json.loads((FOLDER / "solvers.json").read_text())
ARRAYS = np.load(FOLDER / "solvers.npz")
FLOAT32_TABLES = 1e-5  # originals whose coefficient tables are float32
FLOAT64 = 1e-8


class Mixture:
    """Isotropic Gaussians in D dimensions: the exact denoiser of the golden cases."""

    def __init__(self):
        self.means, self.stds, self.weights = (
            torch.from_numpy(ARRAYS[f"gmm/{k}"]) for k in ("means", "stds", "weights")
        )

    def x0(self, x, alpha, sigma):
        shape, x = x.shape, x.reshape(len(x), -1)
        v = alpha**2 * self.stds**2 + sigma**2
        centred = x[:, None] - alpha * self.means
        logits = self.weights.log() - centred.square().sum(-1) / (2 * v) - x.shape[1] / 2 * v.log()
        means = self.means + (alpha * self.stds**2 / v)[:, None] * centred
        return (logits.softmax(1)[..., None] * means).sum(1).reshape(shape)

    def network(self, schedule, prediction, time_of, calls):
        def model(x, t):
            calls.append(float(t[0]))
            p = schedule.point(time_of(float(t[0])))
            x0 = self.x0(x, p.alpha, p.sigma)
            return x0 if prediction == "x0" else (x - p.alpha * x0) / p.sigma

        return model


def respaced(respacing, total=1000):
    """The training steps of guided-diffusion's `timestep_respacing`, increasing: "ddim25", "20" or "10,8,5"."""
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


def guided_diffusion(name, meta):
    if meta["clip_denoised"]:
        return "clipping of x0 is not in this version"
    if meta["model_var_type"] not in ("FIXED_SMALL", "FIXED_LARGE"):
        return "learned variances are not in this version"
    schedule = {"linear": VPDiscrete.linear, "cosine": VPDiscrete.cosine}[meta["schedule"]]()
    if meta["sampler"] == "ddim":
        solver = get_solver("ddim", eta=meta["eta"])
    else:
        solver = get_solver("ddpm", variance=meta["model_var_type"].removeprefix("FIXED_").lower())
    times = [(n + 1) / 1000 for n in reversed(respaced(meta["respacing"]))] + [0.0]
    return dict(solver=solver, schedule=schedule, times=times, prediction="eps", tolerance=FLOAT32_TABLES)


def k_diffusion(name, meta):
    sampler = name.split("/")[1].split("-", 1)[1].replace("_", "-")
    if sampler not in SOLVERS or meta["schedule"] not in ("karras", "exponential"):
        return f"{sampler} on the {meta['schedule']} grid is not in this version"
    schedule = VE(meta["sigma_min"], meta["sigma_max"])
    times = (
        karras(schedule, meta["steps"], rho=meta["rho"])
        if meta["schedule"] == "karras"
        else logsnr(schedule, meta["steps"])
    )
    options = {ours: meta[theirs] for ours, theirs in (("eta", "eta"), ("correction", "solver_type")) if theirs in meta}
    return dict(
        solver=get_solver(sampler, **options), schedule=schedule, times=times, prediction="x0", tolerance=FLOAT64
    )


def edm(name, meta):
    if meta.get("S_churn"):
        return "churn is not in this version"
    schedule = VE(0.002, 80.0)
    times = karras(schedule, meta["num_steps"])
    return dict(solver="heun", schedule=schedule, times=times, prediction="x0", tolerance=FLOAT64, scale=80.0)


FAMILIES = {"guided-diffusion": guided_diffusion, "k-diffusion": k_diffusion, "edm": edm}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    family = name.split("/")[0]
    case = FAMILIES[family](name, CASES[name]) if family in FAMILIES else f"the {family} family is not in this version"
    if isinstance(case, str):
        pytest.skip(case)
    schedule, tolerance, scale = case["schedule"], case["tolerance"], case.get("scale", 1.0)
    expected = torch.from_numpy(ARRAYS[f"{name}/x_out"])
    x = scale * torch.from_numpy(ARRAYS[f"{name}/x_init"]).reshape(expected.shape)
    noise = torch.from_numpy(ARRAYS[f"{name}/noise"]) if f"{name}/noise" in ARRAYS else None
    time_of = (lambda n: (n + 1) / schedule.num_steps) if isinstance(schedule, VPDiscrete) else (lambda sigma: sigma)
    calls: list[float] = []
    model = Mixture().network(schedule, case["prediction"], time_of, calls)
    result = fastdiff.sample(
        model,
        x,
        schedule=schedule,
        prediction=case["prediction"],
        solver=case["solver"],
        grid=np.asarray(case["times"]),
        noise=None if noise is None else noise.reshape(len(noise), *expected.shape),
        seed=0,
    )
    error = (result - expected).abs().max() / expected.square().mean().sqrt()
    assert error <= tolerance
    assert np.allclose(calls, ARRAYS[f"{name}/model_times"], rtol=1e-6)


def test_there_are_cases_of_every_solver():
    """The folder in the repository covers each solver that is here."""
    if os.environ.get("FASTDIFF_GOLDEN"):
        pytest.skip("FASTDIFF_GOLDEN names another folder")
    covered = set()
    for name, meta in CASES.items():
        family = name.split("/")[0]
        case = FAMILIES[family](name, meta) if family in FAMILIES else ""
        if isinstance(case, dict):
            covered.add(get_solver(case["solver"]).name)
    assert covered == set(SOLVERS)
