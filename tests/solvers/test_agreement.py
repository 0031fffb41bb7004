"""Identities between solvers, and that the reference engine, the C++ engine and the plain step functions agree."""

import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian, states

import fastdiff
from fastdiff import sample
from fastdiff.engine.direct import integrate
from fastdiff.grids import make_grid
from fastdiff.noise import CounterNoise
from fastdiff.prediction import PREDICTIONS
from fastdiff.program.tracing import trace
from fastdiff.schedules import EDM, VPDiscrete, VPLinear
from fastdiff.solvers import SOLVERS, get_solver

VP = VPDiscrete.linear()
COSINE = VPDiscrete.cosine()  # alpha(1) = 5e-5: formulas that divide by alpha twice lose 9 of float64's 16 digits
STOCHASTIC_DDIM = get_solver("ddim", eta=0.7)
LARGE = get_solver("ddpm", variance="large")
FIXED = [s for s in SOLVERS.values() if not s.adaptive]
ALL = [*FIXED, STOCHASTIC_DDIM, LARGE]


def network(prediction, schedule=VP):
    return Gaussian(schedule).network(prediction, lambda n: (n + 1) / 1000)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", ALL, ids=lambda s: f"{s.name}{s.options or ''}")
def test_three_ways_to_run_agree(isa, solver, prediction, guided):
    """Step functions on tensors, the Program on the reference engine, the Program in C++: float64, the same noise."""
    exact = network(prediction)

    def model(x, t, shift):
        return exact(x, t) + shift[:, None]  # and to the variance, if there is one

    def draw(number):
        return CounterNoise.of(5, 16).draw(number, x.shape, x.dtype)

    x, cond, uncond = states(), {"shift": torch.full((16,), 0.1)}, {"shift": torch.full((16,), -0.05)}
    guidance = fastdiff.CFG(1.7, interval=(-3.0, 2.0)) if guided else None
    common = dict(guidance=guidance, cond=cond, uncond=uncond)
    times = make_grid("uniform", VP, 12)
    direct = integrate(solver, model, x, VP, times, PREDICTIONS[prediction], draw=draw, **common)
    results = []
    for backend in ("reference", "cpu"):
        with fastdiff.use(backend):
            results.append(
                sample(model, x, schedule=VP, prediction=prediction, solver=solver, grid=times, seed=5, **common)
            )
    for result in results:
        assert relative_error(result, direct) < 1e-10


@pytest.mark.parametrize("solver", ALL, ids=lambda s: f"{s.name}{s.options or ''}")
@pytest.mark.parametrize("shape", [(8, 3, 9, 7), (2, 3, 61, 67)])  # the second: many tiles of noise, two threads
def test_engines_agree_to_the_bit(isa, solver, shape):
    """Also where the state is as ill-conditioned as it gets, and where rounding would be amplified over the steps."""
    results = []
    for backend in ("reference", "cpu"):
        with fastdiff.use(backend):
            results.append(
                sample(network("v", COSINE), shape, schedule=COSINE, prediction="v", solver=solver, steps=25, seed=1)
            )
    assert torch.equal(*results)


def test_ddim_is_the_first_order_dpm_solver():
    """Lu et al. 2022, Section 4.1: the first step of DPM-Solver++, without history, is DDIM."""
    x = states()
    for start, end in ((1.0, 0.6), (0.3, 0.1), (0.02, 0.0)):
        one = dict(schedule=VP, prediction="eps", grid=[start, end], seed=0)
        assert (
            relative_error(
                sample(network("eps"), x, solver="ddim", **one), sample(network("eps"), x, solver="dpmpp-2m", **one)
            )
            < 1e-12
        )


def test_ddim_with_eta_one_is_ddpm():
    x = states()
    common = dict(schedule=VP, prediction="eps", grid="linspace", steps=20, seed=3)
    ddim = sample(network("eps"), x, solver=get_solver("ddim", eta=1.0), **common)
    assert relative_error(ddim, sample(network("eps"), x, solver="ddpm", **common)) < 1e-10


def test_ancestral_sampling_reaches_the_data():
    """1,000 steps of DDPM on the exact model give the data's mean and standard deviation."""
    data = Gaussian(VP)
    result = sample(network("eps"), (64, 4, 16, 16), schedule=VP, prediction="eps", solver="ddpm", steps=1000, seed=0)
    n = result.numel()
    assert abs(float(result.mean()) - data.mean) < 5 * data.std / n**0.5 + 1e-3
    assert abs(float(result.std()) / data.std - 1) < 5 / (2 * n) ** 0.5 + 1e-2  # first-order bias of 1,000 steps


@pytest.mark.parametrize("solver", FIXED, ids=lambda s: s.name)
def test_model_calls(solver):
    data = Gaussian(VPLinear())
    times = make_grid("uniform", data.schedule, 7)
    network = data.network("x0", lambda t: t)
    sample(network, states(), schedule=data.schedule, prediction="x0", solver=solver, grid=times, seed=0)
    # A method that looks at the end of its step cannot do so at the data; one that corrects the state at the start of
    # its step can, and may end with a call of its own for x0.
    further = len(data.calls) - (7 * solver.evaluations + solver.warm_up)
    assert further in (1 - solver.evaluations, 0, 1)
    intervals = solver.intervals(data.schedule.points(times))
    calls = trace(solver, data.schedule, times, PREDICTIONS["x0"]).calls
    assert data.calls == [call.point.t for call in calls]
    assert all(intervals[call.step][-1].t <= call.point.t <= intervals[call.step][0].t for call in calls)


def test_a_last_step_to_the_data_returns_x0():
    """That of the last call: of x itself, unless the solver first moves x at its level of noise."""
    data = Gaussian(EDM())
    x = states() * 0.5
    exact = data.network("x0", lambda t: t)
    for solver in FIXED:
        inputs, outputs = [], []

        def network(x, t, inputs=inputs, outputs=outputs):
            inputs.append(x.clone())
            outputs.append(exact(x, t))
            return outputs[-1]

        result = sample(network, x, schedule=data.schedule, prediction="x0", solver=solver, grid=[0.5, 0.0], seed=0)
        assert torch.equal(inputs[0], x)
        assert relative_error(result, outputs[-1]) < 1e-12
        assert len(outputs) == 1 or solver.stochastic
