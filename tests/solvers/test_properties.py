"""What holds for every solver on every schedule and grid: searched, not chosen."""

import math

import numpy as np
import pytest
import torch
from conftest import relative_error
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fastdiff
from fastdiff import engine, sample
from fastdiff.grids import GRIDS, make_grid
from fastdiff.noise import CounterNoise
from fastdiff.prediction import PREDICTIONS
from fastdiff.program import Program
from fastdiff.program.tracing import trace
from fastdiff.schedules import EDM, VE, RectifiedFlow, SubVP, VPDiscrete, VPLinear
from fastdiff.solvers import SOLVERS

FIXED = [s for s in SOLVERS.values() if not s.adaptive]
searching = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])

betas = st.lists(st.floats(1e-5, 0.2), min_size=30, max_size=60).map(lambda b: VPDiscrete(np.sort(b)))
schedules = st.one_of(
    betas,
    st.sampled_from([VPDiscrete.linear(), VPDiscrete.scaled_linear(), VPDiscrete.cosine(), VPLinear(), SubVP(), VE()]),
    st.builds(lambda low, ratio: EDM(low, low * ratio), st.floats(1e-3, 0.1), st.floats(100.0, 1e5)),
)
steps = st.integers(1, 25)


def grids_for(schedule):
    training_steps = ("leading", "trailing", "linspace")
    return [name for name in GRIDS if isinstance(schedule, VPDiscrete) or name not in training_steps]


def times_of(data, schedule, count, *, to_data=True):
    times = make_grid(data.draw(st.sampled_from(grids_for(schedule)), label="grid"), schedule, count)
    return times if to_data else times[:-1]


@pytest.mark.parametrize("solver", FIXED, ids=lambda s: s.name)
@searching
@given(data=st.data(), schedule=schedules, count=steps, prediction=st.sampled_from(["eps", "x0", "v"]))
def test_coefficients_are_finite_and_the_data_are_reached(solver, data, schedule, count, prediction):
    """Also in one step, where orders have to drop. Tracing refuses a coefficient that is not finite; and with a network
    that sees a single image everywhere, the last step must end at that image."""
    times = times_of(data, schedule, count)
    program = trace(solver, schedule, times, PREDICTIONS[prediction])
    assert len(program.calls) >= 1
    if prediction == "eps":  # whose x0 divides by an alpha of 1e-5: the point here is the end, not the conditioning
        assume(schedule.point(times[0]).alpha > 1e-3)
    image = torch.tensor([[0.7, -1.3], [0.2, 0.9]], dtype=torch.float64)

    def network(x, t):
        p = points[float(t[0])]
        a, b = PREDICTIONS[prediction].x0(p)
        return (image - a * x) / b

    points = {float(call.model_time): call.point for call in program.calls}
    x = schedule.prior_std(times[0]) * torch.ones(2, 2, dtype=torch.float64)
    with fastdiff.use("reference"):
        result = engine.run(program, network, x, engine.Inputs(CounterNoise.of(0, 2)))
    assert relative_error(result, image) < 1e-6


@pytest.mark.parametrize("solver", FIXED, ids=lambda s: s.name)
@searching
@given(data=st.data(), schedule=schedules, count=st.integers(2, 25))
def test_a_grid_may_end_before_the_data(solver, data, schedule, count):
    times = times_of(data, schedule, count, to_data=False)
    program = trace(solver, schedule, times, PREDICTIONS["v"])
    assert all(math.isfinite(c) for i in program.tables.values() for c in i[-1])


@pytest.mark.parametrize("solver", FIXED, ids=lambda s: s.name)
def test_a_flow_from_pure_noise(solver):
    """alpha = 0 at the start: a solver starts there, or says that it cannot; it never returns NaN."""
    image = torch.tensor([[0.7, -1.3]], dtype=torch.float64)
    x = torch.tensor([[0.4, 1.1]], dtype=torch.float64)

    def network(state, t):  # eps - x0 of the straight line through the state; at the data, of that from x
        time = float(t[0])
        return (state - image) / time if time > 0 else x - image

    result, refusal = None, ""
    try:
        result = sample(network, x, schedule=RectifiedFlow(), prediction="flow", solver=solver, steps=6, seed=0)
    except ValueError as error:
        refusal = str(error)
    if result is not None:
        assert relative_error(result, image) < 1e-9
    else:
        assert f"solver {solver.name!r}" in refusal
        assert "cannot step from t=1" in refusal


@pytest.mark.parametrize("solver", FIXED, ids=lambda s: s.name)
def test_a_saved_program_runs_the_same(solver, tmp_path):
    """Printed, saved to JSON, loaded and run again: the same bits."""
    schedule = VPDiscrete.linear()
    program = trace(solver, schedule, make_grid("uniform", schedule, 12), PREDICTIONS["v"])
    assert str(program).splitlines()[0].startswith(f"{solver.name}: {len(program.calls)} calls")
    path = tmp_path / "program.json"
    path.write_text(program.to_json())
    loaded = Program.from_json(path.read_text())
    assert loaded == program
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = engine.Inputs(CounterNoise.of(3, 2))
    results = [engine.run(p, lambda x, t: torch.tanh(x), x, inputs) for p in (program, loaded)]
    assert torch.equal(*results)
