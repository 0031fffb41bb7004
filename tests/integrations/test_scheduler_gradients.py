"""Schedulers in one pass: with gradients, without, and under the transforms of torch.func."""

from __future__ import annotations

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from integrations.scheduler_loops import both, loop, same, tensor  # noqa: E402

from fastdiff.integrations.diffusers import scheduler_for  # noqa: E402
from fastdiff.integrations.diffusers.state import NAME  # noqa: E402


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_of_gradients(mode):
    with mode():
        states = []
        for scheduler in both("DPMSolverMultistepScheduler"):
            for _ in range(2):
                scheduler.set_timesteps(6)
                x = tensor(0)
                for t in scheduler.timesteps:
                    x = scheduler.step(torch.tanh(x), t, x).prev_sample
            states.append(x)
        same(states[1][None], states[0][None], 1e-5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_transforms_of_torch_func(name):
    def first(function):
        return [function(s, lambda x, s=s: s.step(torch.tanh(x), s.timesteps[0], x).prev_sample) for s in both(name)]

    x, y = tensor(1, 2, 3, 4, 4, 4), tensor(2, 2, 3, 4, 4, 4)
    for found in (
        first(lambda s, step: torch.vmap(step)(x)),
        first(lambda s, step: torch.func.jvp(step, (x,), (y,))[1]),
        first(lambda s, step: torch.func.grad(lambda x: step(x).square().sum())(x)),
        first(lambda s, step: torch.compile(step, backend="eager")(x)),
    ):
        same(found[1][None], found[0][None], 1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_gradients_flow_through_a_step(clip):
    gradients = []
    for scheduler in both("DDIMScheduler", {"clip_sample": clip}):
        x = tensor(0).requires_grad_()
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(torch.tanh(y), t, y).prev_sample
        (y**2).sum().backward()
        gradients.append(x.grad)
    same(gradients[1][None], gradients[0][None], 1e-4)


def test_a_scheduler_in_the_middle_of_a_loop_with_gradients():
    theirs = diffusers.DPMSolverMultistepScheduler()
    theirs.set_timesteps(6)
    x = tensor(0).requires_grad_()
    for t in theirs.timesteps[:2]:
        x = theirs.step(torch.tanh(x), t, x).prev_sample
    ours, reason = scheduler_for(theirs)
    assert ours is not None, reason
    y = x
    for t in theirs.timesteps[2:]:
        x, y = theirs.step(torch.tanh(x), t, x).prev_sample, ours.step(torch.tanh(y), t, y).prev_sample
    same(y[None], x[None], 1e-5)


def test_a_scheduler_made_in_inference_mode():
    with torch.inference_mode():
        theirs, ours = both("UniPCMultistepScheduler")
        for _ in range(2):
            same(loop(ours, 5), loop(theirs, 5), 1e-5)
        assert vars(ours)[NAME].taken == 10
    with torch.no_grad():
        same(loop(ours, 5), loop(theirs, 5), 1e-5)
