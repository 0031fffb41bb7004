"""Schedules and grids: identities, inverses, the papers' numbers, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff
from fastdiff.grids import GRIDS, make_grid
from fastdiff.schedules import EDM, SCHEDULES, VE, RectifiedFlow, SubVP, VariancePreserving, VPDiscrete, VPLinear

searching = settings(deadline=None, max_examples=50)
ALL = [make() for make in SCHEDULES.values()]
PRESERVING = [s for s in ALL if isinstance(s, VariancePreserving)]


@pytest.mark.parametrize("schedule", PRESERVING, ids=lambda s: s.name)
def test_variance_is_preserved(schedule):
    t = np.linspace(0, schedule.t_max, 1001)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1, rtol=1e-14)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
@searching
@given(fraction=st.floats(0, 1))
def test_lambda_has_its_inverse(schedule, fraction):
    t = schedule.t_min + fraction * (schedule.t_max - schedule.t_min)
    # lambda is a difference of logarithms of size up to 20: its rounding, over the slope at t, is the error in t.
    slope = abs(schedule.lam(t) - schedule.lam(t * 0.9999)) / (0.0001 * t)
    assert abs(schedule.t_of_lam(schedule.lam(t)) - t) <= 1e-13 + 64 * 20 * 2.2e-16 / slope


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_more_time_is_more_noise_and_time_zero_is_the_data(schedule):
    assert np.all(np.diff(schedule.lam(np.linspace(schedule.t_min, schedule.t_max, 500))) < 0)
    data = schedule.point(0.0)
    assert (data.alpha, data.sigma, data.lam) == (1.0, 0.0, math.inf)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_rates_are_the_derivatives(schedule):
    h = 1e-6
    for t in np.linspace(schedule.t_min, schedule.t_max, 7)[1:-1] + 0.0003 * schedule.t_max:  # not at a knot
        measured = [(f(t + h) - f(t - h)) / (2 * h) for f in (schedule.alpha, schedule.sigma)]
        np.testing.assert_allclose(schedule.rates(float(t)), measured, rtol=1e-6, atol=1e-8)


def test_forward_sdes():
    """Score SDE, Eq. 30 to 32: f and g^2 of the three."""
    t = 0.4
    beta, integral = 0.1 + t * 19.9, 0.1 * t + 19.9 / 2 * t**2
    assert VPLinear().drift_diffusion(t) == pytest.approx((-beta / 2, beta))
    assert SubVP().drift_diffusion(t) == pytest.approx((-beta / 2, beta * (1 - np.exp(-2 * integral))))
    ve = VE(0.01, 50.0)
    assert ve.drift_diffusion(t) == pytest.approx((0.0, float(ve.sigma(t)) ** 2 * 2 * np.log(5000)))


def test_rectified_flow_shift():
    """Esser et al. 2024, Eq. 23: equal steps in t, moved by the square root of the ratio of the resolutions."""
    schedule = RectifiedFlow.for_resolution(1024**2, 256**2)
    assert schedule.shift == 4
    times = make_grid("shifted", schedule, 4)
    np.testing.assert_allclose(times, [1, 12 / 13, 4 / 5, 4 / 7, 0])
    with pytest.raises(ValueError, match="divides by alpha"):
        make_grid("karras", schedule, 4)


def test_ve_goes_on_to_the_data():
    ve = VE(0.01, 50.0)
    assert ve.sigma(ve.t_min) == pytest.approx(0.01, rel=1e-4)
    assert [float(ve.sigma(share * ve.t_min)) for share in (0.0, 0.25)] == [0, 0.25 * float(ve.sigma(ve.t_min))]
    assert float(ve.t_of_lam(-math.log(0.001))) == pytest.approx(1e-6, rel=1e-3)


def test_discrete_betas():
    linear = VPDiscrete.linear()
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(linear.alpha(np.arange(1, 1001) / 1000) ** 2, alpha_bar, rtol=1e-12)
    # Stable Diffusion's published alphas_cumprod: first and last.
    scaled = VPDiscrete.scaled_linear()
    np.testing.assert_allclose(scaled.alpha([0.001, 1.0]) ** 2, [0.99915, 0.00466], atol=5e-6)
    cosine = VPDiscrete.cosine()
    assert cosine.betas.max() == 0.999
    u = 0.5
    expected = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine.alpha(u) ** 2, expected, rtol=1e-9)


def test_model_time_is_the_training_step():
    schedule = VPDiscrete.linear()
    assert [schedule.model_time(t) for t in (0.001, 0.5, 1.0)] == [0.0, 499.0, 999.0]
    assert VPLinear().model_time(0.3) == 0.3


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [1.0, 0.1], [[0.1]], [-0.1]])
def test_bad_betas(betas):
    with pytest.raises(ValueError, match="betas"):
        VPDiscrete(betas)


def test_time_outside():
    with pytest.raises(ValueError, match="t must lie"):
        VPDiscrete.linear().point(1.5)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_grids_decrease_to_the_data(name, steps):
    schedule = VPDiscrete.scaled_linear()
    times = make_grid(name, schedule, steps)
    assert len(times) == steps + 1
    assert np.all(np.diff(times) < 0)
    assert times[-1] == 0
    assert times[0] <= schedule.t_max
    if name != "leading":  # which leaves out the last training steps
        assert times[0] == pytest.approx(schedule.t_max)


def test_training_step_grids():
    schedule = VPDiscrete.linear()
    as_steps = lambda name, n: np.round(make_grid(name, schedule, n)[:-1] * 1000 - 1).astype(int).tolist()  # noqa: E731
    assert as_steps("leading", 4) == [750, 500, 250, 0]
    assert as_steps("trailing", 4) == [999, 749, 499, 249]  # Lin et al. 2024, Table 2
    assert as_steps("linspace", 4) == [999, 666, 333, 0]


@searching
@given(sigma_max=st.floats(1.0, 200.0), name=st.sampled_from(["uniform", "quadratic", "logsnr", "karras", "shifted"]))
def test_a_grid_starts_at_t_max_to_the_bit(sigma_max, name):
    """quadratic squared a root, and its rounding left the schedule's range."""
    assert make_grid(name, EDM(0.002, sigma_max), 7)[0] == sigma_max


def test_karras_grid_is_even_in_the_power():
    times = make_grid("karras", EDM(0.002, 80.0), 18)[:-1]
    assert np.allclose(np.diff(times ** (1 / 7), 2), 0, atol=1e-12)


def test_bad_grids():
    schedule = VPDiscrete.linear()
    with pytest.raises(ValueError, match="did you mean 'karras'"):
        make_grid("karas", schedule, 5)
    for steps in (0, -1, 2.5):
        with pytest.raises(ValueError, match="steps must be"):
            make_grid("uniform", schedule, steps)
    with pytest.raises(ValueError, match="must decrease"):
        make_grid([0.5, 0.7, 0.0], schedule, 2)
    with pytest.raises(ValueError, match="must lie"):
        make_grid([1.5, 0.0], schedule, 1)
    with pytest.raises(ValueError, match="picks training steps"):
        make_grid("leading", VPLinear(), 5)
    with pytest.raises(ValueError, match="at most the schedule's 1000"):
        make_grid("leading", schedule, 1001)


def test_schedules_print_what_they_are():
    assert repr(VPDiscrete.linear()) == "VPDiscrete(betas=1000 from 0.0001 to 0.02, name='linear')"
    assert repr(EDM()) == "EDM(sigma_min=0.002, sigma_max=80.0)"
    assert repr(RectifiedFlow(3.0)) == "RectifiedFlow(shift=3.0, time_scale=1.0, t_min=0.001)"
    for make in SCHEDULES.values():
        assert "object at" not in repr(make())
    table = fastdiff.edm_table.EDMTable("vp", "none")
    assert repr(table).startswith("EDMTable(noise='vp', scaling='none', sigma_min=")
    assert repr(fastdiff.prediction.get_prediction("v")) == "Prediction('v')"
    assert "object at" not in repr(fastdiff.load("emoji-unet-32").info)
