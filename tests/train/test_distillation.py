"""Score distillation on Gaussian data: the exact gradients are known, and the optimum is the mean."""

import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian

from fastdiff.schedules import VPDiscrete
from fastdiff.train.losses import dds_loss, sds_loss
from fastdiff.train.process import Process

SCHEDULE = VPDiscrete.linear()
DATA = Gaussian(SCHEDULE)
X = DATA.mean + DATA.std * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TIMES = [0.2, 0.5, 0.9]


def network(kind):
    """The exact network for a time of each sample, of data that `shift` moves."""

    def model(x, t, shift=None):
        one = DATA.network(kind, lambda n: (n + 1) / 1000)
        rows = []
        for k in range(len(x)):
            p = SCHEDULE.point((float(t[k]) + 1) / 1000)
            move = 0.0 if shift is None else float(shift.expand(len(x))[k])
            out = one(x[k : k + 1] - p.alpha * move, t[k : k + 1])
            rows.append(out if kind == "eps" else out - p.sigma * move)  # v = alpha eps - sigma x0
        return torch.cat(rows)

    return model


def process(kind="eps"):
    return Process.of(SCHEDULE, kind)


def exact(x, times=TIMES):
    points = [SCHEDULE.point(t) for t in times]
    y = torch.stack([p.alpha * a + p.sigma * e for p, a, e in zip(points, x, NOISE)])
    return torch.stack([(row - p.alpha * DATA.x0(row, p.t)) / p.sigma for p, row in zip(points, y)])


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_gradient_is_the_difference_of_the_noises(kind):
    x = X.clone().requires_grad_()
    loss = sds_loss(network(kind), process(kind), x, guidance=1.0, times=TIMES, noise=NOISE)
    loss.sum().backward()
    w = torch.tensor([SCHEDULE.point(t).sigma ** 2 for t in TIMES], dtype=torch.float64)[:, None]
    gradient = w * (exact(X) - NOISE)
    assert relative_error(x.grad, gradient) < 1e-10
    assert relative_error(loss.detach(), 0.5 * gradient.square().sum(1)) < 1e-10


def test_guidance_extrapolates():
    cond, uncond = {"shift": torch.tensor([0.5])}, {"shift": torch.tensor([0.0])}
    gradients = {}
    for g, c in ((1.0, cond), (1.0, uncond), (4.0, cond)):
        x = X.clone().requires_grad_()
        common = dict(times=TIMES, noise=NOISE, weighting="uniform")
        sds_loss(network("eps"), process(), x, guidance=g, cond=c, uncond=uncond, **common).sum().backward()
        gradients[g, c is cond] = x.grad + NOISE
    expected = gradients[1.0, False] + 4 * (gradients[1.0, True] - gradients[1.0, False])
    assert relative_error(gradients[4.0, True], expected) < 1e-10


def test_the_gradient_goes_through_a_renderer():
    theta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        loss = sds_loss(network("eps"), process(), theta.expand(8, 4), generator, guidance=1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(float(theta.detach()) - DATA.mean) < 0.1


def test_dds_of_the_source_itself_is_zero_and_of_another_text_has_no_noise():
    same = {"shift": torch.tensor([0.0])}
    x = X.clone().requires_grad_()
    common = dict(guidance=1.0, times=TIMES, noise=NOISE)
    dds_loss(network("eps"), process(), x, X, cond=same, source_cond=same, **common).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(X))
    x = X.clone().requires_grad_()
    other = {"shift": torch.tensor([0.3])}
    dds_loss(network("eps"), process(), x, X, cond=other, source_cond=same, **common).sum().backward()
    assert (x.grad < 0).all()  # towards the other mean
    assert relative_error(x.grad, x.grad[:, :1].expand(3, 4)) < 1e-10  # eps is linear: the noise cancels


def test_the_clip_limits_and_the_image_doubles():
    grads = []
    for options in ({}, {"image": True}, {"clip": 0.05}):
        x = X.clone().requires_grad_()
        sds_loss(network("eps"), process(), x, guidance=1.0, times=TIMES, noise=NOISE, **options).sum().backward()
        grads.append(x.grad)
    assert relative_error(grads[1], 2 * grads[0]) < 1e-12
    assert torch.equal(grads[2], grads[0].clamp(-0.05, 0.05))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 2.0}, "guidance needs uncond"),
        ({"guidance": 1.0, "weighting": "sd"}, "unknown weighting"),
        ({"guidance": 1.0, "times": [0.5]}, "one a sample"),
        ({"guidance": 1.0, "noise": X[:1]}, "noise must be like x"),
        ({"guidance": 1.0, "clip": 0.0}, "clip must be positive"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        sds_loss(network("eps"), process(), X, **{"times": TIMES, "noise": NOISE, **options})
