"""The unconditional output at every k-th step alone: which calls are guided, and what is added at the others."""

from itertools import pairwise

import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian, states

import fastdiff
from fastdiff import CFG, sample
from fastdiff.grids import make_grid
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import SOLVERS, get_solver

SCHEDULE = VPDiscrete.linear()
TIMES = make_grid("uniform", SCHEDULE, 12)


def shifted(**options):
    exact = Gaussian(SCHEDULE).network("eps", lambda n: (n + 1) / 1000)
    halves = dict(cond={"shift": torch.full((16,), 0.1)}, uncond={"shift": torch.full((16,), -0.05)})
    return sample(
        lambda x, t, shift: exact(x, t) + shift[:, None], states(), schedule=SCHEDULE, prediction="eps", grid=TIMES,
        **halves, **options,
    )  # fmt: skip


def test_calls_are_guided_at_every_third_step():
    program = fastdiff.trace("ddim", SCHEDULE, TIMES, "eps", guidance=CFG(3.0, every=3))
    assert [call.guided for call in program.calls] == [True, False, False] * 4
    assert program.nfe == 12 + 4
    heun = fastdiff.trace("heun", SCHEDULE, TIMES, "eps", guidance=CFG(3.0, every=2))
    assert [(call.step, call.guided) for call in heun.calls][:6] == [
        (0, True), (0, True), (1, False), (1, False), (2, True), (2, True)
    ]  # fmt: skip


def test_in_an_interval_it_begins_with_its_first_step():
    guidance = CFG(3.0, interval=(-1.0, 2.0), every=2)
    calls = fastdiff.trace("ddim", SCHEDULE, TIMES, "eps", guidance=guidance).calls
    inside = [call.guided for call in calls if guidance.active(call.point)]
    assert len(inside) > 2
    assert inside == [k % 2 == 0 for k in range(len(inside))]
    assert not any(call.guided for call in calls if not guidance.active(call.point))


def test_the_last_difference_is_added():
    """Against a loop of DDIM's steps that keeps it by hand."""
    exact = Gaussian(SCHEDULE).network("eps", lambda n: (n + 1) / 1000)
    x, points = states(), SCHEDULE.points(TIMES)
    for k, (s, t) in enumerate(pairwise(points)):
        time = torch.full((16,), SCHEDULE.model_time(s.t), dtype=x.dtype)
        cond = exact(x, time) + 0.1 * s.sigma
        if k % 4 == 0:
            added = 2.0 * (cond - (exact(x, time) - 0.05 * s.sigma))
        eps = cond + added
        x = t.alpha * (x - s.sigma * eps) / s.alpha + t.sigma * eps

    def model(x, t, shift):
        sigma = SCHEDULE.point((float(t[0]) + 1) / 1000).sigma
        return exact(x, t) + sigma * shift[:, None]

    found = sample(
        model, states(), schedule=SCHEDULE, prediction="eps", grid=TIMES, solver="ddim", guidance=CFG(3.0, every=4),
        cond={"shift": x.new_full((16,), 0.1)}, uncond={"shift": x.new_full((16,), -0.05)},
    )  # fmt: skip
    assert relative_error(found, x) < 1e-10


@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "heun", "rk45"])
def test_a_difference_that_does_not_change_is_reused_without_error(solver):
    torch.testing.assert_close(
        shifted(solver=solver, guidance=CFG(3.0, every=3)), shifted(solver=solver, guidance=CFG(3.0)),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in SOLVERS if not get_solver(name).adaptive])
def test_it_keeps_no_solver_from_the_compiled_loop(name):
    """What is kept is one more output and one more input of a step, which the kernels are compiled for."""
    solver = get_solver(name)
    plain, reusing = (
        fastdiff.trace(solver, SCHEDULE, make_grid(solver.grid, SCHEDULE, 12), "eps", guidance=CFG(3.0, every=every))
        for every in (1, 2)
    )
    assert plain.too_wide() or not reusing.too_wide()
