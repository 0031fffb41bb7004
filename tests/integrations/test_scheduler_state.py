"""Schedulers in one pass: attributes, copies and errors are diffusers' own; what is kept of a step."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from integrations.scheduler_loops import MULTISTEP, SETTINGS, both, loop, same, tensor  # noqa: E402

from fastdiff.integrations.diffusers import SolverScheduler, scheduler_for  # noqa: E402
from fastdiff.integrations.diffusers.state import NAME, Memory, part_of  # noqa: E402


@pytest.mark.parametrize("name", SETTINGS)
def test_signatures_results_and_attributes_are_the_originals(name):
    theirs, ours = both(name)
    original = type(theirs)
    assert isinstance(ours, original)
    assert (type(ours).__name__, type(ours).__module__) == (original.__name__, original.__module__)
    for method in ("step", "set_timesteps"):
        assert inspect.signature(getattr(ours, method)) == inspect.signature(getattr(theirs, method))
    assert ours.config == theirs.config
    assert {c.__name__ for c in ours.compatibles} == {c.__name__ for c in theirs.compatibles}
    results = []
    for scheduler in (theirs, ours):
        options = (
            {"generator": torch.Generator()} if "generator" in inspect.signature(scheduler.step).parameters else {}
        )
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(tensor(2), scheduler.timesteps[0])
        whole = scheduler.step(tensor(1), scheduler.timesteps[0], tensor(2), **options)
        parts = copy.deepcopy(scheduler).step(
            tensor(1), scheduler.timesteps[1], tensor(2), **options, return_dict=False
        )
        results.append((type(whole), [*whole], len(parts)))
    assert results[0] == results[1]
    ours.__dict__.pop(NAME)
    assert vars(ours).keys() == vars(theirs).keys()
    for key, value in vars(theirs).items():
        found = vars(ours)[key]
        assert type(found) is type(value), key
        if isinstance(value, torch.Tensor):
            assert (found.shape, found.dtype) == (value.shape, value.dtype), key
        elif isinstance(value, (int, float, str, type(None))):
            assert found == value, key


def test_methods_are_the_originals():
    theirs, ours = both("DDIMScheduler")
    noise, t = tensor(3), torch.tensor([5, 700])
    assert torch.equal(ours.add_noise(tensor(1), noise, t), theirs.add_noise(tensor(1), noise, t))
    assert torch.equal(ours.get_velocity(tensor(1), noise, t), theirs.get_velocity(tensor(1), noise, t))
    assert torch.equal(ours._get_variance(500, 300), theirs._get_variance(500, 300))
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert (len(ours), ours.order, ours.init_noise_sigma) == (1000, 1, 1.0)
    theirs, ours = both("DDPMScheduler")
    assert ours.previous_timestep(ours.timesteps[1]) == theirs.previous_timestep(theirs.timesteps[1])
    theirs, ours = both("DPMSolverMultistepScheduler")
    for scheduler in (theirs, ours):
        scheduler.set_begin_index(2)
        scheduler.step(tensor(1), scheduler.timesteps[2], tensor(2))
    assert (ours.step_index, ours.begin_index) == (theirs.step_index, theirs.begin_index) == (3, 2)


def copies(scheduler):
    yield copy.copy(scheduler)
    yield copy.deepcopy(scheduler)
    yield pickle.loads(pickle.dumps(scheduler))
    other = type(scheduler).from_config(scheduler.config)
    other.__dict__.update(copy.deepcopy(scheduler.__dict__))  # as MultiDiffusion keeps the state of each window
    yield other


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler", "PNDMScheduler", *MULTISTEP])
def test_copies_in_the_middle_of_a_loop(name):
    theirs, ours = both(name)
    x, y = tensor(0), tensor(0)
    for t in theirs.timesteps[:3]:
        x, y = theirs.step(torch.tanh(x), t, x)[0], ours.step(torch.tanh(y), t, y)[0]
    for each in copies(ours):
        assert isinstance(each, SolverScheduler)
        assert type(each) is type(ours)
        original, p, q = copy.deepcopy(theirs), x, y
        for t in theirs.timesteps[3:]:
            p, q = original.step(torch.tanh(p), t, p)[0], each.step(torch.tanh(q), t, q)[0]
        same(q[None], p[None], 1e-5)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "PNDMScheduler", *MULTISTEP])
def test_steps_by_diffusers_between_ours(name):
    """Both work on the same attributes. Samples with exchanged strides are left to diffusers."""
    theirs, ours = both(name, steps=9)
    x, y = tensor(0) * theirs.init_noise_sigma, tensor(0) * ours.init_noise_sigma
    for k, t in enumerate(theirs.timesteps):
        p, q = theirs.scale_model_input(x, t), ours.scale_model_input(y, t)
        x = theirs.step(torch.tanh(p), t, x).prev_sample
        if k % 4 == 2:
            y = y.transpose(2, 3).contiguous().transpose(2, 3)
        y = ours.step(torch.tanh(q), t, y).prev_sample.contiguous()
        same(y[None], x[None], 1e-5)
    memory = vars(ours)[NAME]
    assert memory.left.total() >= 2
    assert memory.taken >= 2


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_loops_one_after_the_other_of_other_lengths_and_sizes(name):
    make = getattr(diffusers, name)
    ours, _ = scheduler_for(make())
    for steps, shape in ((5, (1, 4, 8, 8)), (7, (3, 4, 2, 6)), (5, (2, 3, 16)), (5, (1, 4, 8, 8)), (7, (1, 9))):
        states = []
        for scheduler in (make(), ours):
            scheduler.set_timesteps(steps)
            x = tensor(0, *shape)
            for t in scheduler.timesteps:
                x = scheduler.step(torch.tanh(x), t, x).prev_sample
            states.append(x)
        same(states[1][None], states[0][None], 1e-5)
    assert not vars(ours)[NAME].left


def test_the_original_is_left_alone():
    theirs, ours = both("DPMSolverMultistepScheduler")
    for t in ours.timesteps:
        ours.step(tensor(1), t, tensor(2))
    assert theirs.step_index is None
    assert theirs.model_outputs == [None, None]


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (diffusers.DDIMScheduler(thresholding=True, sample_max_value=2.0), "DDIMScheduler with thresholding=True: "),
        (diffusers.DPMSolverMultistepScheduler(thresholding=True), "with thresholding=True: "),
        (diffusers.DPMSolverMultistepScheduler(variance_type="learned"), "with variance_type='learned': "),
        (diffusers.ScoreSdeVeScheduler(), "its step takes other arguments"),
    ],
)
def test_what_is_not_linear_is_left_and_named(scheduler, reason):
    ours, why = scheduler_for(scheduler)
    assert ours is None
    assert reason in why


def test_settings_that_are_arrays():
    betas = np.array([0.1, 0.3])
    ours, why = scheduler_for(diffusers.DDIMScheduler(num_train_timesteps=2, trained_betas=betas, thresholding=True))
    assert ours is None
    assert "thresholding=True" in why


def test_a_scheduler_of_ones_own_is_left():
    class Own(diffusers.DDIMScheduler):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    assert scheduler_for(Own()) == (None, "Own is not a scheduler of diffusers")


def test_tables_that_are_changed_are_seen():
    theirs, ours = both("DDIMScheduler")
    for change in ("replace", "in place", "config"):
        for scheduler in (theirs, ours):
            scheduler.step(tensor(1), scheduler.timesteps[0], tensor(2))
            if change == "replace":
                scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
            elif change == "in place":
                scheduler.alphas_cumprod[:900] *= 0.9
            else:
                scheduler.register_to_config(prediction_type="v_prediction")
        found = [s.step(tensor(1), s.timesteps[0], tensor(2)).prev_sample for s in (theirs, ours)]
        same(found[1][None], found[0][None], 1e-5)


def test_a_numpy_table_changed_in_place_is_seen():
    """NumPy counts no changes, and the object stays the same: the loop begins again with another table."""
    theirs, ours = both("PNDMScheduler")
    loops = []
    for scheduler in (theirs, ours):
        found = []
        for _ in range(2):
            scheduler.counter, scheduler.ets, scheduler.cur_model_output = 0, [], 0
            x = tensor(2)
            for t in scheduler.timesteps[:4]:
                x = scheduler.step(tensor(1), t, x).prev_sample
            found.append(x)
            scheduler.prk_timesteps[:] -= 40
        loops.append(found)
    same(loops[1][0][None], loops[0][0][None], 1e-5)
    same(loops[1][1][None], loops[0][1][None], 1e-5)
    assert not torch.allclose(loops[0][0], loops[0][1], atol=1e-2)


def test_kinds_of_timesteps_and_errors():
    theirs, ours = both("DDIMScheduler")
    for t in (501, np.int64(501), torch.tensor(501), torch.tensor(501, dtype=torch.int32)):
        found = [s.step(tensor(1), t, tensor(2)).prev_sample for s in (theirs, ours)]
        same(found[1][None], found[0][None], 1e-5)
    for scheduler in both("EulerDiscreteScheduler"):
        with pytest.raises(ValueError, match="Passing integer indices"):
            scheduler.step(tensor(1), 0, tensor(2))
    fresh, _ = scheduler_for(diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match="run 'set_timesteps'"):
        fresh.step(tensor(1), 1, tensor(2))
    with pytest.raises(TypeError, match="unknown"):
        ours.step(tensor(1), 501, tensor(2), unknown=1)
    with pytest.raises(TypeError, match="missing"):
        ours.step(tensor(1), 501)


def test_timesteps_on_a_gpu_are_known_by_their_place():
    """Without waiting for the GPU: here of a table on the CPU."""
    memory, table = Memory(), torch.tensor([999, 666, 333, 0])
    assert [part_of(table, t, memory) for t in table] == [999, 666, 333, 0]
    table[1] = 5
    assert [part_of(table, t, memory) for t in table] == [999, 5, 333, 0]
    assert part_of(table[1:], table[0], memory) is None
    assert part_of(table, torch.tensor(999), memory) is None
    assert part_of(table, table.float()[0], memory) is None
    assert part_of(None, table[0], memory) is None
    with torch.inference_mode():
        floats = torch.tensor([1.5, 0.25])
        assert [part_of(floats, t, memory) for t in floats] == [1.5, 0.25]


def test_threads():
    """Measuring in one thread leaves the others' random numbers alone."""
    theirs, _ = both("DDPMScheduler", {"clip_sample": False}, 20)
    wanted = {}
    for seed in range(4):
        generator, x = torch.Generator().manual_seed(seed), tensor(seed)
        for t in theirs.timesteps:
            x = theirs.step(torch.tanh(x), t, x, generator=generator).prev_sample
        wanted[seed] = x
    _, ours = both("DDPMScheduler", {"clip_sample": False}, 20)
    found = {}

    def run(seed):
        generator, x = torch.Generator().manual_seed(seed), tensor(seed)
        for t in ours.timesteps:
            x = ours.step(torch.tanh(x), t, x, generator=generator).prev_sample
        found[seed] = x

    threads = [threading.Thread(target=run, args=(seed,)) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, x in wanted.items():
        same(found[seed][None], x[None], 1e-5)


def test_memory_is_bounded(monkeypatch):
    from fastdiff.integrations.diffusers import state

    monkeypatch.setattr(state, "_LIMIT", 16)
    _, ours = both("FlowMatchEulerDiscreteScheduler")
    for steps in range(2, 30):
        loop(ours, steps, torch.float32)
    memory = vars(ours)[NAME]
    assert len(memory.steps) <= 16
    assert len(memory._numbers) <= 16
    same(loop(ours, 5), loop(diffusers.FlowMatchEulerDiscreteScheduler(), 5), 1e-5)


def test_a_step_is_measured_once():
    _, ours = both("DPMSolverMultistepScheduler")
    for _ in range(3):
        loop(ours, 6, torch.float32)
    memory = vars(ours)[NAME]
    assert (memory.taken, len(memory.steps)) == (18, 6)
