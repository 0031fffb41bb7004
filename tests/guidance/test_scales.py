"""What guidance may be given as, and how wrong guidance is refused."""

import re
import warnings

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import CFG, Classifier, Threshold, sample
from fastdiff.schedules import VPDiscrete

VP = VPDiscrete.linear()
COMMON = dict(schedule=VP, prediction="eps", steps=4, seed=0)
SHAPE = (2, 3, 8, 8)
WRONG = (TypeError, ValueError)


def flat(x, t, c=None):
    return 0.3 * torch.tanh(x) + (0 if c is None else c[:, :1, None, None])


def halves(batch=2):
    return dict(cond={"c": torch.ones(batch, 4)}, uncond={"c": torch.zeros(batch, 4)})


@pytest.mark.parametrize("given", [torch.tensor(7.5), torch.tensor([7.5]), np.array(7.5), np.float32(7.5), [7.5],
                                   (7.5,), torch.tensor(7.5, dtype=torch.float16), CFG(torch.tensor(7.5))])  # fmt: skip
def test_one_scale_however_it_is_held_is_that_scale(given):
    expected = sample(flat, SHAPE, guidance=7.5, **halves(), **COMMON)
    assert not torch.equal(expected, sample(flat, SHAPE, guidance=1.0, **halves(), **COMMON))
    assert torch.equal(sample(flat, SHAPE, guidance=given, **halves(), **COMMON), expected)


def test_one_limit_however_it_is_held_is_that_limit():
    expected = sample(flat, SHAPE, threshold=0.5, **COMMON)
    for given in (torch.tensor(0.5), np.array([0.5]), Threshold(0.5), Threshold(np.float32(0.5))):
        assert torch.equal(sample(flat, SHAPE, threshold=given, **COMMON), expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp-2m"])
@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.array, lambda scales: CFG(scales, rescale=0.5)])
def test_one_scale_a_sample(backend, solver, kind):
    """Each sample as in a run of its own, whose seed and place in the batch it has."""
    scales, common = [7.5, 1.0, 0.0], dict(solver=solver, **COMMON)
    cond, uncond = 0.05 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    guidance = kind(scales)
    with fastdiff.use(backend):
        found = sample(flat, (3, *SHAPE[1:]), guidance=guidance, cond={"c": cond}, uncond={"c": uncond}, **common)
        for k, scale in enumerate(scales):
            rescale = guidance.rescale if isinstance(guidance, CFG) else 0.0
            alone = sample(flat, (1, *SHAPE[1:]), guidance=CFG(scale, rescale=rescale), cond={"c": cond[k : k + 1]},
                           uncond={"c": uncond[k : k + 1]}, first_sample=k, **common)  # fmt: skip
            torch.testing.assert_close(found[k], alone[0], rtol=1e-4, atol=1e-4)


def test_one_scale_a_sample_of_adaptive_solvers_and_learned_variances():
    def variance(x, t, c):
        return torch.cat([flat(x, t, c), 0 * x + c[:, 1:2, None, None]], 1)

    cases = [(flat, "eps", "rk45"), (variance, "eps+variance", fastdiff.solvers.get_solver("ddpm", variance="learned"))]
    for model, prediction, solver in cases:
        common = {**COMMON, "prediction": prediction, "solver": solver}
        several = sample(model, SHAPE, guidance=[3.0, 3.0], **halves(), **common)
        one = sample(model, SHAPE, guidance=3.0, **halves(), **common)
        torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-3)


def test_one_scale_a_sample_takes_no_interval_and_no_program():
    with pytest.raises(ValueError, match="takes no interval"):
        sample(flat, SHAPE, guidance=CFG([1.0, 2.0], interval=(-1, 1)), **halves(), **COMMON)
    with pytest.raises(ValueError, match="one scale a sample is computed at every step, got every=2"):
        sample(flat, SHAPE, guidance=CFG([1.0, 2.0], every=2), **halves(), **COMMON)
    with pytest.raises(ValueError, match=r"one guidance scale is needed here, got 2; fastdiff.sample takes several"):
        fastdiff.trace("ddim", VP, [1.0, 0.5], "eps", guidance=CFG([1.0, 2.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CFG("7"), "guidance scale must be a finite number, got '7' (str)"),
        (lambda: CFG(None), "guidance scale must be a finite number"),
        (lambda: CFG(True), "guidance scale must be a finite number"),
        (lambda: CFG(2.0, interval=5), "guidance interval must be (low, high) in lambda, got 5 (int)"),
        (lambda: CFG(2.0, interval=("a", 1.0)), "guidance interval must be"),
        (lambda: CFG(2.0, interval=(1.0, 2.0, 3.0)), "guidance interval must be"),
        (lambda: CFG(2.0, every=0), "guidance every must be a whole number >= 1, got 0"),
        (lambda: CFG(2.0, every=1.5), "guidance every must be a whole number >= 1, got 1.5"),
        (lambda: CFG(2.0, rescale="x"), "guidance rescale must be a finite number"),
        (lambda: Threshold("x"), "threshold limit must be a finite number, got 'x' (str)"),
        (lambda: Threshold(1.0, percentile="x"), "threshold percentile must be a finite number"),
        (lambda: Threshold(True), "threshold limit must be a finite number"),
        (lambda: Classifier(3), "gradient must be a function gradient(x, t), got 3 (int)"),
        (lambda: Classifier(flat, "x"), "classifier scale must be a finite number"),
    ],
)
def test_guidance(make, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        make()


@pytest.mark.parametrize("guidance", [None, Classifier(lambda x, t: x)])
@pytest.mark.parametrize("solver", ["ddim", "rk45"])
def test_uncond_without_guidance_is_said(solver, guidance):
    with pytest.warns(UserWarning, match="uncond is not used, as there is no guidance") as said:
        sample(flat, SHAPE, solver=solver, guidance=guidance, **halves(), **COMMON)
    assert [warning.filename for warning in said] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(flat, SHAPE, solver=solver, guidance=2.0, **halves(), **COMMON)
        sample(flat, SHAPE, solver=solver, cond=halves()["cond"], **COMMON)


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_condition_of_one_row_is_for_all_samples(guidance):
    one, all_ = halves(1), halves(2)
    if guidance is None:
        del one["uncond"], all_["uncond"]
    found = sample(flat, SHAPE, guidance=guidance, **one, **COMMON)
    assert torch.equal(found, sample(flat, SHAPE, guidance=guidance, **all_, **COMMON))
