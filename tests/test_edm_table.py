"""The noise schedules, scalings and discretisations of EDM's Table 1."""

import numpy as np
import pytest

from fastdiff.edm_table import EDMTable, iddpm_steps, ve_steps, vp_steps
from fastdiff.grids import logsnr, make_grid, uniform
from fastdiff.schedules import EDM, RectifiedFlow, VPLinear

VP = VPLinear(0.1, 20.0)
LEVELS = tuple(float(np.exp(-VP.lam(t))) for t in (1e-3, 1.0))
ALL = [EDMTable(noise, scaling, *LEVELS) for noise in ("vp", "ve", "linear") for scaling in ("vp", "none")]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: f"{s.noise}-{s.scaling}")
def test_it_is_a_schedule(schedule):
    times = np.linspace(schedule.t_min, schedule.t_max, 50)
    assert np.allclose(schedule.lam([schedule.t_min, schedule.t_max]), -np.log(LEVELS), rtol=1e-12)
    assert np.allclose(schedule.t_of_lam(schedule.lam(times)), times, rtol=1e-10)
    assert np.all(np.diff(schedule.lam(times)) < 0)
    assert schedule.point(0.0).sigma == 0
    assert schedule.point(0.0).alpha == 1
    if schedule.scaling == "vp":
        assert np.allclose(schedule.alpha(times) ** 2 + schedule.sigma(times) ** 2, 1.0, rtol=1e-12)
    for t in times[1:-1]:
        h = 1e-5 * t
        numbers = [(f(t + h) - f(t - h)) / (2 * h) for f in (schedule.alpha, schedule.sigma)]
        assert np.allclose(schedule.rates(t), numbers, rtol=1e-6, atol=1e-9)


def test_its_vp_is_the_one_of_score_sde():
    times = np.linspace(1e-3, 1.0, 20)
    table = EDMTable("vp", "vp", *LEVELS)
    assert np.allclose(table.sigma(times), VP.sigma(times), rtol=1e-10)
    assert np.allclose([table.rates(t) for t in times], [VP.rates(t) for t in times], rtol=1e-9)


def test_its_linear_one_is_that_of_edm():
    times = np.linspace(0.002, 80.0, 20)
    assert np.array_equal(EDMTable().sigma(times), EDM().sigma(times))


def test_steps():
    vp = EDMTable("vp", "none", *LEVELS)
    assert np.allclose(vp_steps(vp, 12), uniform(vp, 12), rtol=1e-10)
    edm = EDM(0.02, 100.0)
    assert np.allclose(ve_steps(edm, 12), logsnr(edm, 12), rtol=1e-12)
    assert np.allclose(vp_steps(EDM(*LEVELS), 12)[:-1], vp.ratio(np.linspace(1.0, 1e-3, 12)), rtol=1e-10)
    sigma = make_grid(iddpm_steps, EDM(0.002, 81.0), 18)
    assert len(sigma) == 19
    assert np.all(sigma[:-1] <= 81)
    # u_j of Table 1, one by one.
    ratios = [np.sin(0.5 * np.pi * j / 1000 / 1.008) ** 2 for j in range(1001)]
    u = [0.0]
    for j in range(1000, 0, -1):
        u.append(np.sqrt((u[-1] ** 2 + 1) / max(ratios[j - 1] / ratios[j], 0.001) - 1))
    assert all(np.isclose(u, s, rtol=1e-8).any() for s in sigma)


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown noise 'v'; did you mean 'vp'"):
        EDMTable("v")
    with pytest.raises(ValueError, match="unknown scaling 'edm'"):
        EDMTable("vp", "edm")
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        EDMTable("vp", "vp", 3.0, 2.0)
    with pytest.raises(ValueError, match="the cosine levels in range, got 2000"):
        iddpm_steps(EDM(), 2000)
    with pytest.raises(ValueError, match="alpha, which is 0 at the start of rectified-flow"):
        ve_steps(RectifiedFlow(), 5)
