"""MCG as a method of `inpaint`: its formula by hand, what it keeps, what its gradient is good for, and bad input."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from gaussian import correlated_eps
from small_network import Net

import fastdiff
from fastdiff.editing import inpaint, mcg, replacement
from fastdiff.schedules import VPDiscrete

SCHEDULE = VPDiscrete.linear()
TIMES = np.array([1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0])
COMMON = dict(schedule=SCHEDULE, prediction="eps", grid=TIMES, seed=4)
MEAN, STD = 0.3, 0.7
GENERATOR = torch.Generator().manual_seed(3)
PICTURE = torch.rand(2, 3, 4, 6, dtype=torch.float64, generator=GENERATOR) * 2 - 1
MASK = torch.ones(4, 6, dtype=torch.float64)
MASK[1:3, 2:4] = 0


def gaussian_eps(x, t):
    """Of data N(MEAN, STD^2)."""
    p = SCHEDULE.point((float(t[0]) + 1) / 1000)
    return p.sigma * (x - p.alpha * MEAN) / (p.alpha**2 * STD**2 + p.sigma**2)


@pytest.mark.parametrize("level", ["start", "end"])
def test_a_gaussian_by_hand(level):
    """Chung et al. 2022, Algorithm 1, with DDIM as its solver; d x0 / dx = alpha STD^2 / v."""
    draws = torch.randn(len(TIMES), *PICTURE.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x_init = torch.randn(PICTURE.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for number, (s, t) in enumerate(pairwise(SCHEDULE.points(TIMES))):
        v = s.alpha**2 * STD**2 + s.sigma**2
        x0 = MEAN + s.alpha * STD**2 / v * (x - s.alpha * MEAN)
        residual = MASK * (PICTURE - x0)
        gradient = -s.alpha * STD**2 / v * residual / residual.flatten(1).norm(dim=1)[:, None, None, None]
        p = s if level == "start" else t
        x = t.alpha * x0 + t.sigma * (x - s.alpha * x0) / s.sigma - 0.8 * gradient
        x = MASK * (p.alpha * PICTURE + p.sigma * draws[number]) + (1 - MASK) * x
    method = mcg("ddim", scale=0.8, level=level)
    found = inpaint(gaussian_eps, PICTURE, MASK, method=method, x_init=x_init, noise=draws, **COMMON)
    assert torch.allclose(found, x, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_known_part_is_kept_to_the_last_bit(dtype):
    picture, kept = PICTURE.to(dtype), MASK.expand(PICTURE.shape) == 1
    found = inpaint(gaussian_eps, picture, MASK, method="mcg", **COMMON)
    assert found.dtype == dtype
    assert torch.equal(found[kept], picture[kept])
    noisy = inpaint(gaussian_eps, picture, MASK, method=mcg(level="start"), **COMMON)
    level = SCHEDULE.point(0.05).sigma
    assert 0.5 * level < float((noisy - picture)[kept].std()) < 1.5 * level


def test_what_is_in_the_hole_and_beside_a_sample_has_no_influence():
    other = torch.where(MASK > 0, PICTURE, torch.nan)
    ours = inpaint(gaussian_eps, PICTURE, MASK, method="mcg", solver="ddim", **COMMON)
    assert torch.equal(ours, inpaint(gaussian_eps, other, MASK.bool(), method=mcg("ddim"), **COMMON))
    alone = inpaint(gaussian_eps, PICTURE[1:], MASK, method="mcg", solver="ddim", first_sample=1, **COMMON)
    assert torch.allclose(ours[1:], alone, atol=1e-12)


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m"])
def test_without_its_gradient_it_is_replacement(solver):
    ours = inpaint(gaussian_eps, PICTURE, MASK, method=mcg(solver, scale=0.0), **COMMON)
    assert torch.allclose(ours, inpaint(gaussian_eps, PICTURE, MASK, method=replacement(solver), **COMMON), atol=1e-12)


def test_its_gradient_brings_the_hole_nearer_to_the_conditional_mean():
    """Two standard normals with correlation 0.8: of the second, given that the first is 1."""
    picture = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(2000, 2)
    errors = {}
    for scale in (0.0, 0.05):
        x = inpaint(
            correlated_eps(SCHEDULE, 0.8), picture, torch.tensor([1, 0]), method=mcg(scale=scale), steps=100, seed=2,
            schedule=SCHEDULE, prediction="eps",
        )  # fmt: skip
        errors[scale] = abs(float(x[:, 1].mean()) - 0.8)
    assert errors[0.05] < 0.7 * errors[0.0]


def test_gradients_respect_use():
    net, picture = Net(), torch.rand(2, 3, 8, 8) * 2 - 1
    mask = torch.ones(8, 8)
    mask[2:5] = 0
    guided = dict(cond={"shift": torch.tensor([0.1, 0.2])}, uncond={"shift": torch.zeros(2)}, guidance=2.0)
    results = []
    for backend in ("auto", "reference", "cpu"):
        with fastdiff.use(backend):
            results.append(inpaint(net, picture, mask, method="mcg", threshold=1.0, **guided, **COMMON))
    assert torch.allclose(results[0], results[1], atol=1e-5)
    assert torch.allclose(results[0], results[2], atol=1e-5)


def test_explain_says_that_it_runs_without_a_program():
    inpaint(gaussian_eps, PICTURE, MASK, method="mcg", **COMMON)
    assert any("mcg" in note and "gradient through the model" in note for note in fastdiff.explain().notes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mcg(level="middle"), "unknown level 'middle'"),
        (lambda: mcg(norm="all"), "unknown norm 'all'"),
        (lambda: mcg(scale=float("inf")), "scale must be a finite number"),
        (lambda: mcg("rk45"), "mcg needs a solver with fixed steps, and 'rk45'"),
        (lambda: inpaint(gaussian_eps, PICTURE, MASK, method=mcg(), solver="ddim", **COMMON), "'mcg, ddpm' and 'ddim'"),
        (lambda: inpaint(gaussian_eps, PICTURE, torch.ones(4, 6), method="mcg", **COMMON), "mask has no hole"),
        (lambda: inpaint(gaussian_eps, 3 * PICTURE, MASK, method="mcg", **COMMON), r"picture must lie in \[-1, 1\]"),
        (
            lambda: inpaint(gaussian_eps, PICTURE, MASK, x_init=PICTURE[:1], **COMMON),
            r"x_init must be \(2, 3, 4, 6\), like picture, got \(1, 3, 4, 6\)",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
