"""Langevin dynamics as a corrector and on its own, and the options of the predictor-corrector samplers."""

import numpy as np
import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian, states

from fastdiff import sample
from fastdiff.schedules import EDM, VE, VPDiscrete, VPLinear
from fastdiff.solvers import get_solver

VP = VPLinear()


def run(solver, x, data, **arguments):
    arguments = {"steps": 12, "seed": 0, "grid": "uniform", **arguments}
    return sample(
        data.network("score", lambda t: t), x, schedule=data.schedule, prediction="score", solver=solver, **arguments
    )


def test_a_sample_does_not_depend_on_its_batch():
    """With norm="sample"; with the published norms it does."""
    data, x = Gaussian(VP), states()
    for norm, same in (("sample", True), ("batch", False)):
        solver = get_solver("predictor-corrector", norm=norm)
        assert torch.equal(run(solver, x, data)[:3], run(solver, x[:3], data)) is same


@pytest.mark.parametrize("corrector", ["langevin", "ald"])
@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_correction_is_the_formula(corrector, norm):
    """One step without a prediction: x + eta score + sqrt(2 eta) z at the level of s."""
    data, x, z = Gaussian(VP), states(), states(1)
    s, t = VP.point(0.5), VP.point(0.4)
    solver = get_solver("predictor-corrector", predictor="none", corrector=corrector, norm=norm, snr=0.2)
    result = run(solver, x, data, grid=[0.5, 0.4], noise=z[None])
    score = -(x - s.alpha * data.x0(x, 0.5)) / s.sigma**2
    lengths = z.norm(dim=1, keepdim=True) / score.norm(dim=1, keepdim=True)
    if norm == "batch":
        lengths = z.norm(dim=1).mean() / score.norm(dim=1).mean()
    eta = 2 * (s.alpha / t.alpha) ** 2 * (0.2 * (s.sigma if corrector == "ald" else lengths)) ** 2
    assert relative_error(result, x + eta * score + (2 * eta) ** 0.5 * z) < 1e-12


@pytest.mark.parametrize("predictor", ["reverse-diffusion", "ancestral-sampling"])
def test_on_the_training_steps_of_ddpm_the_predictors_are_ddpm(predictor):
    """ancestral-sampling is DDPM with the large variance; reverse-diffusion agrees with it to first order in beta."""
    schedule = VPDiscrete.linear()
    network = Gaussian(schedule).network("score", lambda n: (n + 1) / 1000)
    results = [
        sample(
            network, states(), schedule=schedule, prediction="score", solver=solver, grid="linspace", steps=999, seed=0
        )
        for solver in (predictor, get_solver("ddpm", variance="large"))
    ]
    assert relative_error(*results) < (1e-10 if predictor == "ancestral-sampling" else 1e-2)


def test_released_steps():
    """N steps of 1 / N whatever the grid, and tables of N values."""
    schedule = VE()
    data, x = Gaussian(schedule), 50 * states()
    network = data.network("score", lambda sigma: float(schedule.t_of_lam(-np.log(sigma))))
    times = np.append(np.linspace(1.0, 1e-5, 10), 0.0)
    for predictor in ("euler-maruyama", "reverse-diffusion", "ancestral-sampling"):
        solver = get_solver(predictor, discretization="released")
        z = torch.zeros(10, *x.shape, dtype=x.dtype)
        result = sample(network, x, schedule=schedule, prediction="score", solver=solver, grid=times, noise=z)
        y, table = x, 0.01 * 5000 ** (np.arange(10) / 9)
        for i in reversed(range(10)):
            sigma = float(schedule.sigma(times[9 - i]))
            score = (data.x0(y, times[9 - i]) - y) / sigma**2
            low = table[i - 1] if i else 0.0
            rate = 2 * sigma**2 * np.log(5000) / 10 if i else 2 * sigma * schedule.rates(1e-5)[1] / 10
            y = y + (rate if predictor == "euler-maruyama" else table[i] ** 2 - low**2) * score
        assert relative_error(result, y) < 1e-12


def test_annealed_langevin_equilibrates_at_each_level():
    """The lengths of its steps are relative to sigma; its fixed point at a level is a little wider than p_s."""
    data = Gaussian(EDM(), mean=0.0)
    x = torch.zeros(200, 100, dtype=torch.float64)
    solver = get_solver("annealed-langevin", step_size=0.1, n_steps=60, denoise=False)
    result = sample(
        data.network("x0", lambda t: t), x, schedule=EDM(), prediction="x0", solver=solver, grid=[0.3, 0.0], seed=0
    )
    length, variance = 0.1 * 0.3**2, data.marginal_std(0.3) ** 2
    shrink = 1 - length / (2 * variance)
    expected = length * (1 - shrink**120) / (1 - shrink**2)
    assert abs(float(result.var()) / expected - 1) < 5 * (2 / 20_000) ** 0.5
    assert abs(expected / variance - 1) < 0.2


def test_bad_options():
    data, x = Gaussian(VP), states()
    for options, message in (
        (dict(predictor="euler"), "unknown predictor 'euler'"),
        (dict(corrector="lang"), "unknown corrector 'lang'; did you mean 'langevin'"),
        (dict(discretization="table"), "unknown discretization 'table'"),
        (dict(norm="all"), "unknown norm 'all'"),
        (dict(n_steps_each=0), "n_steps_each must be >= 1, got 0"),
        (dict(predictor="ancestral-sampling", probability_flow=True), "is not a solver of the ODE"),
    ):
        with pytest.raises(ValueError, match=message):
            run(get_solver("predictor-corrector", **options), x, data)
    with pytest.raises(ValueError, match=r"step_size must lie in \(0, 4\), got 4"):
        run(get_solver("annealed-langevin", step_size=4.0), x, data)
