"""Schedules whose last beta is 1, so that the run begins with noise alone (Lin et al. 2024)."""

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import sample
from fastdiff.grids import make_grid
from fastdiff.schedules import VPDiscrete

SCHEDULE = VPDiscrete.scaled_linear().with_zero_terminal_snr()
# To the bit, or nearly, what it is with a last alpha of 1e-6.
EXACT = ["ddim", "ddpm", "dpm-solver-1", "deis-rho-1", "deis-rho-3", "lms", "predictor-corrector", "reverse-diffusion"]
# Their later coefficients look at lambda of the first point, which is -13.8 with that alpha.
NEAR = ["dpmpp-2m", "dpmpp-2s", "dpmpp-3m", "deis-3", "unipc-2", "exp-rk-3", "dpmpp-2m-sde", "rho-3heun"]


def network(x, t):
    return 0.5 * torch.tanh(x) + 0.1


def state():
    return torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_rescaled_betas_are_those_of_algorithm_1():
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    for make in (VPDiscrete.linear, VPDiscrete.scaled_linear):
        theirs = rescale_zero_terminal_snr(torch.from_numpy(make().betas)).numpy()
        np.testing.assert_allclose(make().with_zero_terminal_snr().betas, theirs, rtol=1e-9)
        assert theirs[-1] == 1
        VPDiscrete(theirs)
    assert diffusers is not None


def test_alpha_reaches_zero():
    p, before = SCHEDULE.point(1.0), SCHEDULE.point(0.999)
    assert (p.alpha, p.sigma, p.lam) == (0.0, 1.0, -np.inf)
    assert SCHEDULE.grid == "trailing"
    assert VPDiscrete.scaled_linear().grid is None
    middle = SCHEDULE.point(0.9995)
    assert middle.alpha == pytest.approx(before.alpha / 2, rel=1e-9)  # linear in the last interval
    assert SCHEDULE.point(0.0) == VPDiscrete.scaled_linear().point(0.0)


def test_times_of_lambda_and_rates():
    for t in (1.0, 0.99999, 0.9995, 0.999, 0.998, 0.5, 0.0005, 0.0):
        p = SCHEDULE.point(t)
        assert float(SCHEDULE.t_of_lam(p.lam)) == pytest.approx(t, abs=1e-12)
        assert float(SCHEDULE.t_of_log_alpha(SCHEDULE.log_alpha(t))) == pytest.approx(t, abs=1e-12)
    for t in (0.9999, 0.9995, 0.9985, 0.5005):
        h = 1e-7
        a, b = SCHEDULE.point(t - h), SCHEDULE.point(t + h)
        expected = (b.alpha - a.alpha) / (2 * h), (b.sigma - a.sigma) / (2 * h)
        assert SCHEDULE.rates(t) == pytest.approx(expected, rel=1e-5)
    d_alpha, d_sigma = SCHEDULE.rates(1.0)
    assert d_alpha == pytest.approx(-1000 * SCHEDULE.point(0.999).alpha)
    assert d_sigma == 0


@pytest.mark.parametrize("betas", [[0.1, 1.0, 0.1], [0.1, 1.1], [1.0, 1.0], [0.0, 1.0], [0.1, float("nan")]])
def test_only_the_last_beta_may_be_one(betas):
    with pytest.raises(ValueError, match="betas must lie strictly between 0 and 1, but for the last one"):
        VPDiscrete(betas)


@pytest.mark.parametrize("prediction", ["v", "x0", "flow"])
@pytest.mark.parametrize("solver", [*EXACT, *NEAR])
def test_solvers_begin_at_noise_alone(solver, prediction):
    """As the limit of schedules that do not reach it."""
    betas = SCHEDULE.betas.copy()
    betas[-1] = 1 - 1e-12
    common = dict(prediction=prediction, solver=solver, steps=8, seed=1)
    found = sample(network, state(), schedule=SCHEDULE, **common)
    expected = sample(network, state(), schedule=VPDiscrete(betas), grid="trailing", **common)
    rtol, atol = (1e-5, 1e-5) if solver in EXACT else (0.1, 0.02)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_ddim_is_that_of_diffusers(prediction):
    diffusers = pytest.importorskip("diffusers")
    kind = {"v": "v_prediction", "x0": "sample"}[prediction]
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, prediction_type=kind,
        timestep_spacing="trailing", rescale_betas_zero_snr=True,
    )  # fmt: skip
    theirs.alphas_cumprod = torch.from_numpy(np.cumprod(1 - SCHEDULE.betas))  # in float64
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(10)
    x = state()
    for t in theirs.timesteps:
        x = theirs.step(network(x, t), t, x).prev_sample
    found = sample(network, state(), schedule=SCHEDULE, prediction=prediction, solver="ddim", steps=10)
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)


def test_a_run_from_a_shape_with_guidance():
    model = lambda x, t, c: network(x, t) + c[:, None]  # noqa: E731
    cond, uncond = {"c": torch.ones(2)}, {"c": torch.zeros(2)}
    guidance = fastdiff.CFG(3.0, rescale=0.7)
    found = sample(
        model, (2, 3), schedule=SCHEDULE, prediction="v", seed=0, guidance=guidance, cond=cond, uncond=uncond
    )
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("prediction", ["eps", "score", "eps+variance", "edm"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "rk45"])
def test_what_says_nothing_of_the_data_there_is_refused(prediction, solver):
    model = lambda x, t: torch.cat([x, x], 1) if "variance" in prediction else x  # noqa: E731
    with pytest.raises(ValueError, match=r"says nothing of the data at t=1, where alpha is 0 .*must predict 'v', 'x0'"):
        sample(model, state(), schedule=SCHEDULE, prediction=prediction, solver=solver, steps=4)


def test_the_noise_will_do_where_the_run_begins_later():
    times = make_grid("uniform", SCHEDULE, 8)[1:]
    assert torch.isfinite(sample(network, state(), schedule=SCHEDULE, prediction="eps", grid=times)).all()


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm-solver-23"])
def test_solvers_that_divide_by_alpha_say_so(solver):
    with pytest.raises(ValueError, match="where alpha is 0"):
        sample(network, state(), schedule=SCHEDULE, prediction="v", solver=solver, steps=4)
    with pytest.raises(ValueError, match=r"divides by alpha.*use uniform"):
        sample(network, state(), schedule=SCHEDULE, prediction="v", grid="karras")


def test_likelihoods_and_encodings():
    """A network that is exact for normal data gives their density."""
    deviation = 0.5

    def exact(x, t):
        p = SCHEDULE.point(float((t[0] + 1) / 1000))
        total = (p.alpha * deviation) ** 2 + p.sigma**2
        return (p.alpha * p.sigma - p.sigma * p.alpha * deviation**2) / total * x  # v = alpha eps - sigma x0

    x = deviation * state()
    found = fastdiff.log_likelihood(exact, x, schedule=SCHEDULE, prediction="v", seed=0, probes=8)
    p = SCHEDULE.point(SCHEDULE.t_min)
    std = (p.alpha * deviation) ** 2 + p.sigma**2
    expected = -0.5 * (x.square() / std).sum(1) - 1.5 * np.log(2 * np.pi * std)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    z = fastdiff.encode(exact, x, schedule=SCHEDULE, prediction="v", steps=200)
    torch.testing.assert_close(z, x / deviation, rtol=0.02, atol=0.02)
