"""Schedulers in one pass: the numbers of diffusers' own in any loop."""

from __future__ import annotations

import random

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from integrations.scheduler_loops import MULTISTEP, SETTINGS, SIGMAS, both, loop, same, tensor  # noqa: E402

from fastdiff.integrations.diffusers import SolverScheduler, scheduler_for  # noqa: E402
from fastdiff.integrations.diffusers.state import NAME  # noqa: E402

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def drawn(name, seed):
    """Settings of a class, about half of them given, and what a loop needs."""
    chance = random.Random(f"{name}, {seed}")
    options = {key: chance.choice(values) for key, values in SETTINGS[name].items() if chance.random() < 0.6}
    options.pop(chance.choice([None, *SIGMAS]), None)
    sigmas = [key for key in SIGMAS if options.get(key)]
    for key in sigmas[1:]:  # diffusers takes one of them
        options[key] = False
    arguments = {"eta": chance.choice([0.0, 0.3, 1.0]), "s_churn": chance.choice([0.0, 2.0])}
    return options, chance.choice([3, 5, 12, 17]), arguments


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", SETTINGS)
def test_the_steps_of_settings_drawn_at_random(name, seed):
    make = getattr(diffusers, name)
    for attempt in range(100):
        options, steps, arguments = drawn(name, f"{seed}.{attempt}")
        try:
            wanted = loop(make(**options), steps, **arguments)
        except Exception:  # diffusers refuses some combinations, in many ways
            continue
        if wanted.isfinite().all():
            break
    ours, reason = scheduler_for(make(**options))
    assert isinstance(ours, SolverScheduler), reason
    same(loop(ours, steps, **arguments), wanted, 3e-5)  # some of diffusers' compute in float32
    memory = vars(ours)[NAME]
    assert memory.taken > 0
    assert memory.left.total() <= 1, memory.left  # as the first step at zero signal to noise
    again = loop(ours, steps, **arguments)  # by what was measured before
    same(again, wanted, 3e-5)


# Those that compute in the dtype of their arguments, in float64.
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler"])
def test_in_float64_to_its_rounding(name):
    make = getattr(diffusers, name)
    ours, _ = scheduler_for(make(**BETAS))
    same(loop(ours, 8), loop(make(**BETAS), 8), 1e-12)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", *MULTISTEP, "PNDMScheduler"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(name, dtype):
    make = getattr(diffusers, name)
    theirs, (ours, _) = make(), scheduler_for(make())
    bound = 1e-5 if dtype is torch.float32 else 12 * torch.finfo(dtype).eps
    same(loop(ours, 6, dtype).double(), loop(theirs, 6, dtype).double(), bound)
    memory = vars(ours)[NAME]
    assert memory.left.total() <= (0 if dtype is torch.float32 else 1) < memory.taken  # rounding may hide linearity


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
                                  "FlowMatchEulerDiscreteScheduler", *MULTISTEP])  # fmt: skip
def test_a_loop_that_begins_later(name):
    make = getattr(diffusers, name)
    theirs, (ours, _) = make(), scheduler_for(make())
    same(loop(ours, 10, begin=4), loop(theirs, 10, begin=4), 1e-5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "TCDScheduler", "LCMScheduler"])
@pytest.mark.parametrize("order", [[0, 0, 1, 1, 2], [3, 1, 4, 0], [5, 4, 3, 2, 1, 0], [2]])
def test_steps_in_any_order_and_more_than_once(name, order):
    pairs = [(s, torch.Generator().manual_seed(0)) for s in both(name)]
    for place in order:
        if name in ("TCDScheduler", "LCMScheduler"):
            for scheduler, _ in pairs:
                scheduler._step_index = place
        found = [s.step(tensor(1), s.timesteps[place], tensor(2), generator=g).prev_sample for s, g in pairs]
        same(found[1][None], found[0][None], 1e-5)


def test_two_samples_in_one_loop_and_a_larger_one():
    theirs, ours = both("DDIMScheduler")
    states = [[tensor(1), tensor(2), tensor(3, 1, 4, 12, 4)] for _ in range(2)]
    for k, t in enumerate(theirs.timesteps):
        for scheduler, those in zip((theirs, ours), states):
            for j, x in enumerate(those):
                x = x if k != 3 else torch.nn.functional.interpolate(x, scale_factor=2)
                those[j] = scheduler.step(torch.tanh(x), t, x).prev_sample
    for mine, wanted in zip(states[1], states[0]):
        same(mine[None], wanted[None], 1e-5)


def test_multistep_history_that_does_not_fit_is_diffusers_error():
    theirs, ours = both("DPMSolverMultistepScheduler")
    for scheduler in (theirs, ours):
        scheduler.step(tensor(1), scheduler.timesteps[0], tensor(2))
        with pytest.raises(RuntimeError, match="must match the size"):
            scheduler.step(tensor(1, 2, 4, 12, 16), scheduler.timesteps[1], tensor(2, 2, 4, 12, 16))


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"eta": 0.4, "use_clipped_model_output": True}, {"eta": 0.0}])
def test_eta_and_generators(options):
    theirs, ours = both("DDIMScheduler")
    for make in (lambda: torch.Generator().manual_seed(3), lambda: [torch.Generator().manual_seed(k) for k in (3, 4)]):
        found = [s.step(tensor(1), s.timesteps[2], tensor(2), generator=make(), **options)[0] for s in (theirs, ours)]
        same(found[1][None], found[0][None], 1e-5)


def test_noise_that_is_given_and_the_global_generator():
    for name, options in (
        ("DDIMScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ):
        theirs, ours = both(name, options)
        eta = {"eta": 1.0} if name == "DDIMScheduler" else {}
        noise = tensor(5)
        found = [s.step(tensor(1), s.timesteps[0], tensor(2), variance_noise=noise, **eta)[0] for s in (theirs, ours)]
        assert torch.equal(*found)  # which diffusers computes
        found = []
        for scheduler in (theirs, ours):
            torch.manual_seed(0)
            x = scheduler.step(tensor(1), scheduler.timesteps[1], tensor(2), **eta)[0]
            found.append((x, torch.rand(1)))  # as many numbers were drawn
        same(found[1][0][None], found[0][0][None], 1e-5)
        assert torch.equal(found[0][1], found[1][1])


def test_measuring_draws_no_random_numbers():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    ours, _ = scheduler_for(diffusers.DDPMScheduler())
    ours.set_timesteps(4)
    ours.step(tensor(1), ours.timesteps[0], tensor(2), generator=torch.Generator())
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("DPMSolverMultistepScheduler", {"timesteps": [999, 850, 736, 500, 124, 24]}),  # Align Your Steps
        ("DDPMScheduler", {"timesteps": [980, 600, 300, 0]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.6, 6.3, 2.1, 0.5, 0.1, 0.0]}),
        ("FlowMatchEulerDiscreteScheduler", {"sigmas": [1.0, 0.7, 0.3]}),
        ("LCMScheduler", {"num_inference_steps": 4, "original_inference_steps": 40}),
    ],
)
def test_times_of_ones_own(name, given):
    states = []
    for scheduler in both(name):
        x, generator = tensor(0), torch.Generator().manual_seed(0)
        scheduler.set_timesteps(**given)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x, generator=generator, return_dict=False)[0]
        states.append(x)
    same(states[1][None], states[0][None], 1e-5)


def test_dynamic_shifting():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours, reason = scheduler_for(theirs)
    assert ours is not None, reason
    for mu in (0.5, 1.15):
        states = []
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(5, mu=mu)
            x = tensor(0, 1, 9, 16)
            for t in scheduler.timesteps:
                x = scheduler.step(torch.tanh(x), t, x).prev_sample
            states.append(x)
        same(states[1][None], states[0][None], 1e-5)


def test_layouts():
    theirs, ours = both("DDIMScheduler")
    sample, wide = tensor(1), tensor(2, 2, 8, 6, 8)
    last, narrow = sample.to(memory_format=torch.channels_last), sample[:, :, :1]
    cases = [(sample, wide[:, :4]), (last, last), (narrow, narrow), (tensor(1, 3, 5), tensor(2, 3, 5)), (sample, wide),
             (tensor(1, 7), tensor(2, 7)), (sample.transpose(2, 3), tensor(4).transpose(2, 3))]  # fmt: skip
    for x, output in cases:
        results = []
        for scheduler in (theirs, ours):
            try:
                results.append(scheduler.step(output, torch.tensor(501), x).prev_sample)
            except RuntimeError as error:
                results.append(str(error))
        if isinstance(results[0], str):
            assert results[0] == results[1]
        else:
            assert results[0].stride() == results[1].stride()
            same(results[1][None], results[0][None], 1e-5)


def test_two_steps_at_most():
    ours, reason = scheduler_for(diffusers.SCMScheduler())
    assert ours is not None, reason
    states = []
    for scheduler in (diffusers.SCMScheduler(), ours):
        scheduler.set_timesteps(2)
        x, generator = tensor(0), torch.Generator().manual_seed(0)
        for t in scheduler.timesteps[:-1]:  # as pipelines do
            x = scheduler.step(torch.tanh(x), t, x, generator=generator).prev_sample
        states.append(x)
    same(states[1][None], states[0][None], 1e-5)
    assert not vars(ours)[NAME].left


def test_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        theirs, ours = both("DPMSolverMultistepScheduler")
        found = [s.step(tensor(1).float(), s.timesteps[0], tensor(2).float()).prev_sample for s in (theirs, ours)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[1].dtype == found[0].dtype
    same(found[1][None], found[0][None], 1e-5)
