"""Log-likelihoods against the closed form."""

import math

import pytest
import torch
from gaussian import Gaussian, states

import fastdiff
from fastdiff import SamplingError
from fastdiff.likelihood import bits_per_dimension
from fastdiff.schedules import EDM, VPLinear


def normal_log_density(x, mean, std):
    return -0.5 * ((x - mean) / std).square().sum(1) - x.shape[1] * (math.log(std) + 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=lambda s: s.name)
def test_of_normal_data(schedule, prediction):
    """dv/dx is a multiple of the unit matrix, for which one probe is exact."""
    data = Gaussian(schedule)
    x = 0.6 + 0.3 * states()
    x[0] = 3.0  # far out
    result = fastdiff.log_likelihood(
        data.network(prediction, lambda t: t), x, schedule=schedule, prediction=prediction, rtol=1e-8, atol=1e-8, seed=0
    )
    p = schedule.point(schedule.t_min)
    std, top = data.marginal_std(schedule.t_min), data.marginal_std(schedule.t_max)
    z = data.exact(x, schedule.t_min, schedule.t_max)
    of_the_ode = normal_log_density(z, 0.0, schedule.prior_std(schedule.t_max)) + x.shape[1] * math.log(top / std)
    assert result.shape == (16,)
    torch.testing.assert_close(result, of_the_ode, rtol=0, atol=2e-5)
    # The prior is not quite the distribution at t_max: alpha(t_max) is not 0.
    true = normal_log_density(x, p.alpha * data.mean, std)
    torch.testing.assert_close(result[1:], true[1:], rtol=1e-3, atol=0.06)


def test_the_trace_is_estimated_without_bias():
    """Correlated normal data: v is linear with a full matrix, so that each probe errs, and their mean does not."""
    schedule = VPLinear()
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    calls = []

    def eps(x, t):
        calls.append(float(t[0]))
        p = schedule.point(float(t[0]))
        marginal = p.alpha**2 * covariance + p.sigma**2 * torch.eye(2, dtype=torch.float64)
        return p.sigma * x @ torch.linalg.inv(marginal)

    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    common = dict(schedule=schedule, prediction="eps", rtol=1e-5, atol=1e-5)
    p = schedule.point(schedule.t_min)
    data = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), p.alpha**2 * covariance + p.sigma**2 * torch.eye(2, dtype=torch.float64)
    )
    one = fastdiff.log_likelihood(eps, x, seed=0, **common)
    many = fastdiff.log_likelihood(eps, x, seed=0, probes=400, **common)
    assert float((one - data.log_prob(x)).abs().max()) > 0.1
    spread = float((one - data.log_prob(x)).square().mean().sqrt())
    assert float((many - data.log_prob(x)).abs().max()) < 4 * spread / 20 + 1e-3
    assert torch.equal(one, fastdiff.log_likelihood(eps, x, seed=0, **common))
    assert calls[0] == schedule.t_min


def test_bits_per_dimension():
    """Bytes that are equally likely have 8 bits, in either scaling."""
    x = torch.zeros(3, 2, 4)
    uniform = torch.full((3,), -8 * math.log(2.0))  # density 1/2 on [-1, 1]
    torch.testing.assert_close(bits_per_dimension(uniform, x), torch.full((3,), 8.0))
    torch.testing.assert_close(bits_per_dimension(torch.zeros(3), x, levels=256.0), torch.full((3,), 8.0))


def test_what_it_refuses():
    model, x = (lambda x, t: x), torch.zeros(2, 4)
    common = dict(schedule="vp-linear", prediction="eps", seed=0)
    with pytest.raises(ValueError, match="probes must be a whole number >= 1, got 0"):
        fastdiff.log_likelihood(model, x, probes=0, **common)
    with pytest.raises(ValueError, match="x must be a float32 or float64 tensor"):
        fastdiff.log_likelihood(model, x.half(), **common)
    with pytest.raises(ValueError, match="prediction must be given"):
        fastdiff.log_likelihood(model, x, schedule="vp-linear")
    with pytest.raises(SamplingError, match="does not reach t=1 in max_steps=1"):
        fastdiff.log_likelihood(model, x + 1, max_steps=1, **common)
    with pytest.raises(SamplingError, match=r"log_likelihood, step 1 \(t=0.001\): the model returned shape"):
        fastdiff.log_likelihood(lambda x, t: x[:1], x, **common)
    with pytest.raises(SamplingError, match="the model has no gradient with respect to x"):
        fastdiff.log_likelihood(lambda x, t: x.detach(), x, **common)


def test_a_state_that_overflows_is_said_with_the_step():
    with pytest.raises(SamplingError, match=r"log_likelihood, step \d+ \(t=.*the state overflowed"):
        fastdiff.log_likelihood(lambda x, t: 1e30 * x, torch.ones(2, 4), schedule="vp-linear", prediction="eps", seed=0)


def test_bits_per_dimension_refuses_what_does_not_fit():
    x = torch.zeros(3, 4)
    for given, message in (
        ((torch.zeros(2), x), r"log_p must be \(3,\), one number a sample, got \(2,\)"),
        ((torch.zeros(3, 1), x), r"log_p must be \(3,\)"),
        ((0.5, x), "log_p must be a tensor"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            bits_per_dimension(*given)
    for levels, message in ((0, "levels must be positive"), ("x", "levels must be a finite number")):
        with pytest.raises((TypeError, ValueError), match=message):
            bits_per_dimension(torch.zeros(3), x, levels=levels)
