"""Consistency distillation of a guided model: zero at the closed-form optimum on Gaussian data."""

import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian

import fastdiff
from fastdiff.schedules import VPDiscrete, VPLinear
from fastdiff.train.losses import guided_consistency_loss
from fastdiff.train.losses.guided_consistency import guided_consistency_terms, pseudo_huber
from fastdiff.train.process import Process
from fastdiff.train.teacher import guided

SCHEDULES = {"cosine": VPDiscrete.cosine(), "vp-linear": VPLinear()}
X = 0.6 + 0.3 * torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_rows(schedule, prediction, x0_of):
    """A network from x0_of(row, t): the x0 that it is to mean, at the time of each sample."""
    kind = Process.of(schedule, prediction).prediction
    times = {schedule.model_time(k / 64): k / 64 for k in range(65)}

    def network(x, time):
        out = []
        for row, given in zip(x, time.tolist()):
            t = times[min(times, key=lambda known: abs(known - given))]
            a, b = kind.x0(schedule.point(t))
            out.append((x0_of(row, t) - a * row) / b)
        return torch.stack(out)

    return network


def exact_step(schedule, levels):
    """A denoiser whose DDIM step of a level is that of the probability-flow ODE itself."""
    data = Gaussian(schedule)

    def x0_of(row, t):
        s = max(0.0, t - 1 / levels)
        p, q = schedule.point(t), schedule.point(s)
        ratio = q.sigma / p.sigma
        return (data.exact(row, t, s) - ratio * row) / (q.alpha - ratio * p.alpha)

    return x0_of


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", ["v", "eps"])
@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_the_exact_solution_has_no_loss(name, prediction, ahead):
    schedule = SCHEDULES[name]
    data, process = Gaussian(schedule), Process.of(schedule, prediction)
    student = by_rows(schedule, prediction, lambda row, t: data.exact(row, t, 0.0))
    teacher = by_rows(schedule, prediction, exact_step(schedule, 8))
    index = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])
    found = guided_consistency_terms(
        student, process, X, torch.Generator().manual_seed(1), teacher=teacher, levels=8, ahead=ahead, index=index
    )
    assert relative_error(found.found, found.target) < 1e-8
    assert float(found.loss.max()) < 1e-8
    wrong = guided_consistency_loss(
        teacher, process, X, torch.Generator().manual_seed(1), teacher=teacher, levels=8, ahead=ahead, index=index
    )
    assert float(wrong[1:7].min()) > 1e-3  # a denoiser is no consistency model
    assert float(wrong[0]) < 1e-8  # but for the step to the data, which is the teacher's alone


def test_all_the_way_is_the_teachers_sample_and_asks_no_target():
    schedule = SCHEDULES["cosine"]
    data, process = Gaussian(schedule), Process.of(schedule, "v")
    shift = torch.linspace(-1, 1, 8, dtype=torch.float64)
    network = data.network("v", lambda n: (n + 1) / 1000)

    def teacher(x, t, shift):
        rows = [network(row[None], time[None]) + move for row, time, move in zip(x, t, shift)]
        return torch.cat(rows)

    found = guided_consistency_terms(
        teacher, process, X, torch.Generator().manual_seed(1), teacher=teacher, levels=4, ahead=4,
        index=torch.full((8,), 3), target=lambda *_: pytest.fail("was asked"), shift=shift,
    )  # fmt: skip
    sample = fastdiff.sample(
        teacher, found.z, schedule=schedule, prediction="v", solver="ddim", steps=4, cond={"shift": shift}
    )
    assert relative_error(found.target, sample) < 1e-10
    assert torch.equal(found.target, found.z_next)


def test_the_error_of_ddim_falls_with_the_levels():
    """With the exact denoiser as the teacher, the error of one DDIM step is left: second order in its length."""
    schedule = SCHEDULES["vp-linear"]
    data, process = Gaussian(schedule), Process.of(schedule, "v")
    student = by_rows(schedule, "v", lambda row, t: data.exact(row, t, 0.0))
    teacher = by_rows(schedule, "v", data.x0)
    errors = []
    for levels in (16, 32):
        index = torch.full((8,), levels // 2 - 1)  # t = 1/2 in both
        terms = guided_consistency_terms(
            student, process, X, torch.Generator().manual_seed(1), teacher=teacher, levels=levels, index=index
        )
        errors.append(float((terms.found - terms.target).square().mean().sqrt()))
    assert 3.2 < errors[0] / errors[1] < 4.8


def test_no_gradient_flows_into_the_target():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    process = Process.of("cosine", "v")

    def network(x, t):
        return scale * x.tanh()

    loss = guided_consistency_loss(
        network, process, X, torch.Generator().manual_seed(0), teacher=network, levels=8, index=torch.arange(8)
    )
    loss.sum().backward()
    twin = torch.ones((), dtype=torch.float64, requires_grad=True)
    other = guided_consistency_loss(
        lambda x, t: twin * x.tanh(), process, X, torch.Generator().manual_seed(0), teacher=lambda x, t: x.tanh(),
        target=lambda x, t: x.tanh(), levels=8, index=torch.arange(8),
    )  # fmt: skip
    other.sum().backward()
    assert relative_error(scale.grad, twin.grad) < 1e-12


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_away():
    error = torch.tensor([[3e-4, 4e-4], [300.0, 400.0]], dtype=torch.float64)
    assert relative_error(pseudo_huber(error, 1.0), torch.tensor([1.25e-7, 499.001], dtype=torch.float64)) < 1e-5


def test_a_guided_teacher_extrapolates_in_one_call():
    calls = []

    def network(x, t, y):
        calls.append(len(x))
        return y[:, None] * x + t[:, None]

    x, t, y = X[:3], torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 7.0])
    found = guided(network, 3.0, {"y": torch.tensor([7.0])})(x, t, y=y)
    assert calls == [6]
    expected = torch.stack([(7 + 3 * (k - 7)) * row + time for k, row, time in zip((1, 2, 7), x, (1, 2, 3))])
    assert relative_error(found, expected) < 1e-12
    assert guided(network, 1.0, {}) is network


def test_levels_are_needed():
    with pytest.raises(ValueError, match="ahead must be at least 1, got 0"):
        guided_consistency_loss(None, Process.of("cosine", "v"), X, torch.Generator(), teacher=None, levels=4, ahead=0)
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        guided_consistency_loss(None, Process.of("cosine", "v"), X, torch.Generator(), teacher=None, levels=0)
