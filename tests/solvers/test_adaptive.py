"""Adaptive solvers: they meet their tolerance, refuse what they cannot do, and say where a model breaks down."""

import math

import numpy as np
import pytest
import torch
from gaussian import Gaussian, states

import fastdiff
from fastdiff import CFG, SamplingError, sample
from fastdiff.schedules import EDM, RectifiedFlow, VPDiscrete, VPLinear
from fastdiff.solvers import SOLVERS, get_solver
from fastdiff.solvers.rk45 import dormand_prince

ADAPTIVE = [s for s in SOLVERS.values() if s.adaptive]
VP = VPLinear()
COMMON = dict(schedule=VP, prediction="v", seed=0)


def error(solver, schedule, start, end, prediction="v"):
    """(RMS error against the closed form, calls of the model)."""
    data = Gaussian(schedule)
    x = states() * data.marginal_std(start)
    result = sample(
        data.network(prediction, lambda t: t), x, schedule=schedule, prediction=prediction, solver=solver,
        grid=[start, end], seed=0,
    )  # fmt: skip
    return float((result - data.exact(x, start, end)).square().mean().sqrt()), len(data.calls)


@pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: s.name)
@pytest.mark.parametrize(("schedule", "start", "end"), [(VP, 1.0, 1e-3), (EDM(0.02, 20.0), 20.0, 0.02)])
def test_the_error_follows_the_tolerance(solver, schedule, start, end):
    tolerances = (1e-2, 1e-3, 1e-4, 1e-5)
    results = [error(solver.with_options(rtol=tol, atol=tol), schedule, start, end) for tol in tolerances]
    errors, calls = zip(*results)
    assert errors[2] <= 10 * tolerances[2]  # that of a step is controlled; the steps' errors add up
    assert errors[3] <= 10 * tolerances[3]
    assert errors[0] > 100 * errors[3]
    assert calls[0] < calls[1] < calls[2] < calls[3]
    # The pair's lower method, of order p - 1, has the error h^p in a step: a tenth of it needs 10^(1 / p) as many.
    assert calls[3] / calls[2] < 1.2 * 10 ** (1 / solver.order)


@pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: s.name)
def test_a_grid_to_the_data_ends_with_x0(solver):
    data = Gaussian(VP)
    x = states()
    last = []
    result = sample(data.network("v", lambda t: t), x, solver=solver, callback=lambda i, s: last.append(s), **COMMON)
    assert data.calls[-1] == VP.t_min
    assert torch.equal(result, last[-1])
    torch.testing.assert_close(result, data.x0(last[-2], VP.t_min))
    # The same ends, given otherwise; and from below t_min in one step.
    again = sample(data.network("v", lambda t: t), x, solver=solver, grid=[1.0, 0.0], **COMMON)
    assert torch.equal(result, again)
    below = sample(data.network("v", lambda t: t), x, solver=solver, grid=[1e-4, 0.0], **COMMON)
    torch.testing.assert_close(below, data.x0(x, 1e-4))


@pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: s.name)
def test_guidance_threshold_and_dtype(solver):
    data = Gaussian(VP)
    exact = data.network("v", lambda t: t)

    def model(x, t, shift):
        return exact(x, t) + shift[:, None]

    x, cond, uncond = states(), {"shift": torch.full((16,), 0.1)}, {"shift": torch.full((16,), -0.1)}
    guided = sample(model, x, solver=solver, guidance=CFG(1.5), cond=cond, uncond=uncond, **COMMON)
    mixed = sample(lambda x, t: exact(x, t) + 0.2, x, solver=solver, **COMMON)  # -0.1 + 1.5 0.2
    torch.testing.assert_close(guided, mixed)
    limited = sample(model, x, solver=solver, threshold=0.3, cond=cond, **COMMON)
    assert float(limited.abs().max()) <= 0.3
    half = sample(lambda x, t: 0.1 * x, x.bfloat16(), solver=solver, **COMMON)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: s.name)
def test_what_goes_wrong_is_named(solver):
    x = states()
    broken = lambda x, t: x / (t[:, None] > 0.5)  # noqa: E731  (infinite from 0.5 on)
    with pytest.raises(SamplingError, match=rf"{solver.name}, step \d+ \(t=0\.[0-4].*returned 64 values that are NaN"):
        sample(broken, x, solver=solver, **COMMON)
    with pytest.raises(SamplingError, match=rf"{solver.name}, step 1 \(t=1\): the model raised KeyError"):
        sample(lambda x, t: {}[0], x, solver=solver, **COMMON)
    with pytest.raises(SamplingError, match=r"the model returned shape \(4, 4\), expected \(16, 4\)"):
        sample(lambda x, t: x[:4], x, solver=solver, **COMMON)
    with pytest.raises(SamplingError, match="changed its input x in place"):
        sample(lambda x, t: x.mul_(0.9), x, solver=solver, **COMMON)
    with pytest.raises(SamplingError, match="the initial state holds values that are NaN"):
        sample(lambda x, t: x, x / 0, solver=solver, **COMMON)
    few = solver.with_options(max_steps=3)
    with pytest.raises(
        SamplingError, match=rf"{solver.name} does not reach t=0.001 .* max_steps=3 steps: it is at t=0"
    ):
        sample(Gaussian(VP).network("v", lambda t: t), x, solver=few, **COMMON)
    with pytest.raises(SamplingError, match=r"state overflowed|values that are NaN or infinite"):
        sample(lambda x, t: 1e30 * x, x.float(), solver=solver, **COMMON)
    with pytest.raises(ValueError, match=r"'eps' says nothing of the data at t=1|steps in lambda cannot start at"):
        sample(lambda x, t: x, x, solver=solver, schedule="rectified-flow", prediction="eps", seed=0)


@pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: s.name)
def test_pure_noise_of_a_flow(solver):
    flow = RectifiedFlow()
    data = Gaussian(flow)
    common = dict(schedule=flow, prediction="flow", solver=solver, seed=0)
    if solver.name != "rk45":
        with pytest.raises(ValueError, match="steps in lambda cannot start at t=1, where alpha is 0"):
            sample(lambda x, t: x, states(), **common)
        return
    x = states()
    result = sample(data.network("flow", lambda t: t), x, grid=[1.0, 0.01], **common)
    torch.testing.assert_close(result, data.exact(x, 1.0, 0.01), rtol=1e-3, atol=1e-4)


def test_there_is_no_program():
    from fastdiff.prediction import get_prediction
    from fastdiff.program.tracing import trace

    with pytest.raises(ValueError, match="'rk45' chooses its steps as it runs"):
        trace("rk45", VP, [1.0, 0.5, 0.0], get_prediction("eps"))


def test_dormand_prince_forwards_and_backwards():
    """dy/dt = cos(t) y, y = exp(sin t); an attempt that is rejected yields what was there."""

    def slope(y, t):
        return math.cos(t) * y

    for start, end in ((0.0, 10.0), (10.0, 0.0)):
        y = torch.full((2, 3), math.exp(math.sin(start)), dtype=torch.float64)
        *_, (result, t) = dormand_prince(slope, y, start, end, 1e-9, 1e-9, 1000)
        assert t == end
        assert np.allclose(result, math.exp(math.sin(end)), rtol=1e-7)


def test_discrete_schedules():
    """The rates of a discrete schedule jump at its 1000 steps; the pairs do not mind."""
    schedule = VPDiscrete.linear()
    data = Gaussian(schedule)
    x = states()
    for name in ("rk45", "dpmpp-23"):
        result = sample(
            data.network("eps", lambda n: (n + 1) / 1000), x, schedule=schedule, prediction="eps",
            solver=get_solver(name, rtol=1e-4, atol=1e-4), grid=[1.0, 1e-3], seed=0,
        )  # fmt: skip
        torch.testing.assert_close(result, data.exact(x, 1.0, 1e-3), rtol=0, atol=2e-3)


def test_noise_is_added_where_eta_asks_for_it():
    """On the exact model the ancestral form keeps the data's distribution."""
    data = Gaussian(VP)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = get_solver("dpm-adaptive", eta=1.0, rtol=0.01, atol=0.002)
    result = sample(data.network("v", lambda t: t), x, solver=solver, **COMMON)
    assert not torch.equal(result, sample(data.network("v", lambda t: t), x, solver="dpm-adaptive", **COMMON))
    assert float(result.mean()) == pytest.approx(data.mean, abs=0.02)
    assert float(result.std()) == pytest.approx(data.std, abs=0.02)
    assert fastdiff.solvers.SOLVERS["dpm-adaptive"].options["eta"] == 0


@pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: s.name)
def test_tolerances_that_cannot_be_met_are_named(solver):
    network = lambda x, t: 0.1 * x  # noqa: E731  (zeros stay zeros)
    for options, message in (
        (dict(rtol=-1.0), "must not be negative, got -1.0"),
        (dict(atol=float("nan")), "atol must be a finite number, got nan"),
        (dict(rtol=0, atol=0), "must not both be 0"),
        (dict(atol=0.0), "atol must be positive here: the state holds zeros"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(network, torch.zeros(2, 4), solver=solver.with_options(**options), **COMMON)
    sample(network, states(), solver=solver.with_options(atol=0.0), **COMMON)  # without zeros shares are enough
