"""Solvers that are the same method under two names, or in the limits of another."""

import numpy as np
import pytest
from conftest import relative_error
from gaussian import Gaussian, states

from fastdiff.engine.direct import integrate
from fastdiff.grids import make_grid
from fastdiff.prediction import get_prediction
from fastdiff.schedules import EDM, VE, VPDiscrete, VPLinear
from fastdiff.solvers import get_solver

SCHEDULES = {"vp-linear": VPLinear(), "scaled-linear": VPDiscrete.scaled_linear(), "ve": VE(), "edm": EDM()}


def run(name, schedule, times, **options):
    data = Gaussian(schedule)
    prediction = get_prediction("x0")
    model = data.network("x0", lambda time: time_of(schedule, time))
    return integrate(get_solver(name, **options), model, states(), schedule, times, prediction)


def time_of(schedule, time):
    """The schedule's time where the network receives `time`."""
    if isinstance(schedule, VPDiscrete):
        return (time + 1) / schedule.num_steps
    return float(schedule.t_of_lam(-np.log(time))) if isinstance(schedule, VE) else time


def assert_same(first, second, schedule, times, tolerance=1e-12):
    (name, options), (other, more) = first, second
    result, expected = run(name, schedule, times, **options), run(other, schedule, times, **more)
    assert relative_error(result, expected) < tolerance


@pytest.mark.parametrize("grid", ["uniform", "logsnr", "karras"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["dpm-solver-1", "deis-0", "deis-rho-0", "euler"])
def test_ddim_by_other_names(name, schedule, grid):
    assert_same((name, {}), ("ddim", {"eta": 0.0}), schedule, make_grid(grid, schedule, 10))


@pytest.mark.parametrize(
    ("name", "options", "other", "more"),
    [
        ("lms", {"order": 1}, "euler", {}),
        ("lms", {"order": 2}, "deis-rho-1", {}),
        ("lms", {"order": 3}, "deis-rho-2", {}),
        ("lms", {}, "deis-rho-3", {}),
        ("rho-2heun", {}, "heun", {}),
        ("ipndm", {"order": 1}, "euler", {}),
        ("exp-rk-2", {}, "dpmpp-2s", {"variant": "taylor"}),
        ("exp-rk-3", {}, "dpmpp-3s", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_two_names(name, options, other, more, schedule):
    assert_same((name, options), (other, more), schedule, make_grid("logsnr", schedule, 10))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomials_in_t_are_in_rho_where_t_is_rho(degree):
    schedule = EDM()
    times = make_grid("karras", schedule, 12)[:-1]  # the two differ in the step to the data
    assert_same((f"deis-{degree}", {}), (f"deis-rho-{degree}", {}), schedule, times)


@pytest.mark.parametrize("name", ["ipndm", "plms", "pndm"])
def test_pseudo_linear_multistep_is_adams_bashforth_on_equal_steps_in_rho(name):
    """From the fourth step on; the others only start differently, which an exact history hides."""
    schedule = EDM()
    times = np.linspace(3.0, 0.5, 30)
    data = Gaussian(schedule)
    x = states() * 3
    start = [data.exact(x, 3.0, t) for t in times[1:4]]
    model, prediction = data.network("x0", lambda time: time), get_prediction("x0")
    result, expected = (
        integrate(get_solver(n), model, x, schedule, times, prediction, start=start) for n in (name, "deis-rho-3")
    )
    assert relative_error(result, expected) < 1e-12


@pytest.mark.parametrize("space", ["x0", "eps"])
@pytest.mark.parametrize("variant", ["bh1", "vary_coeff"])
def test_the_variants_of_unipc_are_one_from_two_differences_on(variant, space):
    """B(h) cancels where the weights solve their equations; it counts in the first steps, which are replaced here."""
    schedule = VPLinear()
    data = Gaussian(schedule)
    x = states()
    times = schedule.t_of_lam(np.linspace(schedule.lam(0.9), schedule.lam(0.1), 20))
    start = [data.exact(x, times[0], t) for t in times[1:4]]
    model, prediction = data.network("x0", lambda time: time), get_prediction("x0")
    result, expected = (
        integrate(get_solver("unipc-3", variant=v, space=space), model, x, schedule, times, prediction, start=start)
        for v in (variant, "bh2")
    )
    assert relative_error(result, expected) < 1e-12
