"""Counter-based noise: what it is, that it is normal, and that only (seed, sample, draw, element) matter."""

import warnings

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.noise import CounterNoise, given_noise, philox, reference_normal
from fastdiff.runtime.native import core

# The radius is at most sqrt(2 * 31.7 log 2) = 6.6; log, square root and sine each round a few times in float32.
TOLERANCE = 6.6 * 8 * np.finfo(np.float32).eps


def native(count, seed, sample, draw):
    out = torch.full((-(-count // core.NORMAL_GROUP) * core.NORMAL_GROUP,), float("nan"))
    core.normal(out.data_ptr(), count, seed, sample, draw)
    return out[:count].numpy()


@pytest.mark.parametrize(("seed", "sample", "draw"), [(0, 0, 0), (7, 3, 12), (2**64 - 1, 2**40, 2**32 - 1)])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 4096])
def test_kernel_matches_the_definition(isa, count, seed, sample, draw):
    error = np.abs(native(count, seed, sample, draw) - reference_normal(count, seed, sample, draw)).max()
    assert error <= TOLERANCE


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, key, answer):
    """The published test vectors of Philox4x32-10: zeros, ones and the digits of pi (kat_vectors of Random123)."""
    words = [np.array([int(w, 16)], dtype=np.uint64) for w in counter.split()]
    result = philox(words, *(int(k, 16) for k in key.split()))
    assert [f"{int(w[0]):08x}" for w in result] == answer.split()


def test_normals_of_the_first_counter():
    # An all-zero counter and key give 6627e8d5 e169c58d bc57ac4c 9b00dbd8: its first two words make normals 0 and 16.
    w = np.array([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], dtype=np.uint64)
    u1 = (float(np.float32(w[0] >> np.uint64(1))) + 0.5) * 2.0**-31
    angle = float(w[1] >> np.uint64(8)) * 2.0**-24 * 2 * np.pi
    normals = reference_normal(64, 0, 0, 0)
    expected = np.sqrt(-2 * np.log(u1)) * np.array([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(normals[[0, 16]], expected, rtol=1e-6)


def test_instruction_sets_agree_to_the_bit():
    before, results = core.isa(), []
    try:
        for name in core.supported_isas():
            core.select_isa(name)
            results.append(native(10_000, 5, 2, 1))
    finally:
        core.select_isa(before)
    assert all(np.array_equal(results[0], result) for result in results[1:])


def test_is_standard_normal():
    n = 400_000
    z = native(n, 1, 0, 0).astype(np.float64)
    # Five standard errors of the first four moments.
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand by a true normal; the seed is fixed.
    z.sort()
    cdf = 0.5 * (1 + torch.erf(torch.from_numpy(z) / 2**0.5)).numpy()
    assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 1.95 / n**0.5


def test_streams_are_uncorrelated():
    n = 100_000
    streams = [native(n, *key) for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    correlation = np.corrcoef(streams)
    assert np.abs(correlation - np.eye(4)).max() < 5 / n**0.5


def test_sample_is_the_same_at_any_batch_size():
    large, small = (CounterNoise.of(3, batch).draw(2, (batch, 3, 5, 5), torch.float32) for batch in (8, 2))
    assert torch.equal(large[:2], small)
    later = CounterNoise.of(3, 2, first_sample=6).draw(2, (2, 3, 5, 5), torch.float32)
    assert torch.equal(large[6:], later)


def test_a_list_of_seeds_is_one_a_sample():
    listed = CounterNoise.of([4, 9], 2).initial((2, 7), torch.float32)
    for row, seed in zip(listed, (4, 9)):
        assert torch.equal(row, CounterNoise.of(seed, 1).initial((1, 7), torch.float32)[0])


def test_no_seed_follows_torch():
    torch.manual_seed(1)
    first = CounterNoise.of(None, 2)
    torch.manual_seed(1)
    assert CounterNoise.of(None, 2) == first != CounterNoise.of(None, 2)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, [1], ["a", "b"]])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match="seed must be"):
        CounterNoise.of(seed, 2)


def test_given_noise():
    shape, device = (2, 3), torch.device("cpu")
    draws = torch.arange(12.0).reshape(2, 2, 3)
    assert torch.equal(given_noise(draws, shape, torch.float32, device)(1), draws[1])
    assert torch.equal(given_noise(lambda n: draws[n], shape, torch.float32, device)(0), draws[0])
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(given_noise(generator, shape, torch.float32, device)(0), expected)
    with pytest.raises(ValueError, match="asks for draw 2"):
        given_noise(draws, shape, torch.float32, device)(2)
    with pytest.raises(ValueError, match="draw 0"):
        given_noise(lambda n: torch.zeros(5), shape, torch.float32, device)(0)


def test_a_generators_draw_may_be_used_twice():
    """Stages of one step share a noise, and another order of requests is the same noise."""
    expected = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    draw = given_noise(generator, (2, 3), torch.float32, torch.device("cpu"))
    first, third = draw(0), draw(2)
    assert torch.equal(first, expected)
    assert torch.equal(draw(0), first)
    assert torch.equal(draw(2), third)
    assert not torch.equal(draw(1), third)
    draw(5)
    with pytest.raises(ValueError, match="draw 0 of the generator was not kept"):
        draw(0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_solver_that_shares_noise_between_stages_takes_a_generator(backend):
    common = dict(schedule="linear", prediction="eps", solver="dpmpp-sde", steps=5)
    x = torch.randn(2, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    draws = [torch.randn(2, 4, dtype=torch.float64, generator=generator) for _ in range(8)]
    with fastdiff.use(backend):
        ours = fastdiff.sample(lambda x, t: x.tanh(), x, noise=torch.Generator().manual_seed(7), **common)
        given = fastdiff.sample(lambda x, t: x.tanh(), x, noise=draws, **common)
    assert torch.equal(ours, given)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "rk45"])
@pytest.mark.parametrize("noise", [torch.zeros(9, 1), [torch.zeros(2, 4), 1], torch.zeros(9, 2, 5)])
def test_noise_of_another_shape_is_refused_by_every_solver(solver, noise):
    common = dict(schedule="linear", prediction="eps", steps=3, solver=solver)
    with pytest.raises(ValueError, match=r"draw [01] of noise must be a tensor of shape \(2, 4\), got "):
        fastdiff.sample(lambda x, t: x, torch.zeros(2, 4), noise=noise, **common)


@pytest.mark.parametrize("solver", ["ddim", "rk45", "dpm-adaptive"])
@pytest.mark.parametrize("noise", [torch.Generator(), torch.zeros(9, 2, 4)], ids=["generator", "tensor"])
def test_noise_that_nobody_draws_is_said(solver, noise):
    """It does not make the initial state either."""
    common = dict(schedule="vp-linear", prediction="eps", steps=3, seed=3, start=0.9, grid="uniform")
    x = torch.ones(2, 4)
    with pytest.warns(UserWarning, match=f"noise is not used, as solver '{solver}' draws none") as caught:
        given = fastdiff.sample(lambda x, t: 0.1 * x, x, solver=solver, noise=noise, **common)
    assert [each.filename for each in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(given, fastdiff.sample(lambda x, t: 0.1 * x, x, solver=solver, **common))
        stochastic = fastdiff.solvers.get_solver("dpm-adaptive" if solver == "dpm-adaptive" else "ddim", eta=1.0)
        long = torch.Generator() if isinstance(noise, torch.Generator) else torch.zeros(200, 2, 4)
        fastdiff.sample(lambda x, t: 0.1 * x, x, solver=stochastic, noise=long, **common)
