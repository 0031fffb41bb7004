"""Classifiers, thresholds and the rescaling of guidance, against their formulas, in all three ways to run."""

import gc
import re
import weakref

import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian, states

import fastdiff
from fastdiff import CFG, Classifier, Threshold, sample
from fastdiff.engine.direct import integrate
from fastdiff.grids import make_grid
from fastdiff.guidance.classifier_free import rescale_guidance
from fastdiff.guidance.thresholding import dynamic_threshold
from fastdiff.noise import CounterNoise
from fastdiff.prediction import PREDICTIONS
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import get_solver

SCHEDULE = VPDiscrete.linear()
TIMES = make_grid("uniform", SCHEDULE, 12)


def network(prediction="eps", schedule=SCHEDULE):
    return Gaussian(schedule).network(prediction, lambda n: (n + 1) / 1000)


def gradient(x, t):
    return 0.3 * torch.cos(x) * (1 + t[:, None] / 1000)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance=Classifier(gradient, 1.5)),
        dict(threshold=Threshold(0.8)),
        dict(threshold=Threshold(0.5, percentile=0.7)),
        dict(guidance=Classifier(gradient, 1.5), threshold=Threshold(0.8)),
        dict(guidance=CFG(2.0, rescale=0.7)),
        dict(guidance=CFG(2.0, interval=(-2.0, 1.0), rescale=0.7), threshold=Threshold(0.8)),
        dict(guidance=CFG(2.0, every=3)),
        dict(guidance=CFG(2.0, interval=(-2.0, 1.0), rescale=0.7, every=2), threshold=Threshold(0.8)),
    ],
    ids=lambda options: re.sub(r" at 0x\w+", "", str(options)),  # names must be the same in every process
)
@pytest.mark.parametrize("prediction", ["eps", "v", "eps+variance"])
@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmpp-2m", "heun", "stsp"])
def test_three_ways_to_run_agree(isa, solver, prediction, options):
    exact = network(prediction)

    def model(x, t, shift):
        return exact(x, t) + shift[:, None]

    common = dict(cond={"shift": torch.full((16,), 0.1)}, uncond={"shift": torch.full((16,), -0.05)}, **options)
    x = states()
    noise = [CounterNoise.of(5, 16).draw(n, x.shape, x.dtype) for n in range(12)]
    direct = integrate(
        get_solver(solver), model, x, SCHEDULE, TIMES, PREDICTIONS[prediction], draw=noise.__getitem__, **common
    )
    for backend in ("reference", "cpu"):
        with fastdiff.use(backend):
            result = sample(
                model, x, schedule=SCHEDULE, prediction=prediction, solver=solver, grid=TIMES, seed=5, **common
            )
        assert relative_error(result, direct) < 1e-10


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "ltsp", "stsp"])
def test_an_exact_classifier_gives_the_conditional_distribution(solver):
    """Two Gaussians, their exact mixture as the model and the exact classifier: the samples are of the one asked
    for."""
    component = {1: Gaussian(SCHEDULE, mean=0.6, std=0.1), 0: Gaussian(SCHEDULE, mean=-0.6, std=0.1)}

    def log_p(x, t):
        time = (float(t[0]) + 1) / 1000
        alpha = SCHEDULE.point(time).alpha
        return torch.stack(
            [-(((x - alpha * g.mean) / g.marginal_std(time)) ** 2).sum(1) / 2 for _, g in sorted(component.items())], 1
        )

    def mixture(x, t):
        time = (float(t[0]) + 1) / 1000
        p, share = SCHEDULE.point(time), log_p(x, t).softmax(1)
        x0 = sum(share[:, k : k + 1] * component[k].x0(x, time) for k in (0, 1))
        return (x - p.alpha * x0) / p.sigma

    labels = torch.arange(256) % 2
    guidance = Classifier.from_logits(log_p, labels)
    x = torch.randn(256, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = sample(
        mixture, x, schedule=SCHEDULE, prediction="eps", solver=solver, steps=400, grid="linspace", guidance=guidance
    )
    for k, data in component.items():
        chosen = result[labels == k]
        assert abs(float(chosen.mean()) - data.mean) < 5 * data.std / chosen.numel() ** 0.5 + 0.01
        assert abs(float(chosen.std()) / data.std - 1) < 0.1


def test_static_threshold_limits_x0():
    x = 3 * states()
    sample(network(), x, schedule=SCHEDULE, prediction="eps", solver="ddim", grid=[0.5, 0.0], threshold=0.4)
    result = sample(network(), x, schedule=SCHEDULE, prediction="eps", solver="ddim", grid=[0.5, 0.0], threshold=0.4)
    expected = Gaussian(SCHEDULE).x0(x, 0.5).clamp(-0.4, 0.4)
    assert relative_error(result, expected) < 1e-12


def test_dynamic_threshold_is_the_percentile_of_each_sample():
    x0 = 2 * torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0[2] *= 0.1  # within the limit: left alone
    result = dynamic_threshold(x0, limit=1.0, percentile=0.9)
    for ours, given in zip(result, x0):
        s = max(1.0, float(given.abs().flatten().quantile(0.9)))
        torch.testing.assert_close(ours, given.clamp(-s, s) / s, rtol=1e-12, atol=0)
    assert torch.equal(result[2], x0[2])


def test_rescaled_guidance_has_the_conditional_deviation():
    a, b = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    full = rescale_guidance(5 * a, b, share=1.0)
    torch.testing.assert_close(full.flatten(1).std(1), b.flatten(1).std(1))
    torch.testing.assert_close(rescale_guidance(5 * a, b, share=0.25), 0.25 * full + 0.75 * 5 * a)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold(0.0), "limit must be positive"),
        (lambda: Threshold(1.0, percentile=1.5), "percentile must lie in"),
        (lambda: Classifier(gradient, float("nan")), "scale must be a finite number"),
        (lambda: CFG(2.0, rescale=1.5), "rescale must lie in"),
        (lambda: CFG(2.0, interval=(1.0, 1.0)), "interval must be"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_failing_classifier_is_named():
    def broken(x, t):
        raise RuntimeError("no")

    with pytest.raises(fastdiff.SamplingError, match=r"ddim, step 1 of 12 .*the classifier raised RuntimeError: no"):
        sample(
            network(),
            states(),
            schedule=SCHEDULE,
            prediction="eps",
            solver="ddim",
            grid=TIMES,
            guidance=Classifier(broken),
        )
    nan = Classifier(lambda x, t: x * float("nan"))
    with pytest.raises(fastdiff.SamplingError, match="classifier returned 64 values that are NaN"):
        sample(network(), states(), schedule=SCHEDULE, prediction="eps", solver="ddim", grid=TIMES, guidance=nan)


def test_learned_variance_needs_a_split_prediction():
    with pytest.raises(ValueError, match=r"learned variance needs a prediction like 'eps\+variance'"):
        sample(
            network(),
            states(),
            schedule=SCHEDULE,
            prediction="eps",
            solver=get_solver("ddpm", variance="learned"),
            grid=TIMES,
        )
    with pytest.raises(fastdiff.SamplingError, match="the prediction's channels and the variance's"):
        sample(network(), states(), schedule=SCHEDULE, prediction="eps+variance", solver="ddim", grid=TIMES)


def test_the_cache_of_programs_keeps_no_classifier():
    """Its gradient may hold a network; and one made anew for every call is traced once."""

    def run():
        weights = torch.ones(4, dtype=torch.float64)
        guidance = Classifier(lambda x, t: x * weights, 0.1)
        sample(network(), states(), schedule=SCHEDULE, prediction="eps", solver="ddim", grid=TIMES, guidance=guidance)
        return weakref.ref(guidance.gradient)

    kept = run()
    gc.collect()
    assert kept() is None
