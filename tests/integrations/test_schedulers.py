"""Schedulers in one pass: the numbers of diffusers' own in any loop, and all else is diffusers' own."""

from __future__ import annotations

import copy
import inspect
import pickle
import random
import threading

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from fastdiff.integrations.diffusers import SolverScheduler, scheduler_for  # noqa: E402
from fastdiff.integrations.diffusers.state import NAME, Memory, part_of  # noqa: E402

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LMSDiscreteScheduler")

# Class -> settings to draw from, beside those that most have.
SIGMAS = {"use_karras_sigmas": [False, True], "use_exponential_sigmas": [False, True], "use_beta_sigmas": [False, True]}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "linspace", "trailing"]
COMMON = {
    "beta_schedule": ["linear", "scaled_linear"],
    "prediction_type": PREDICTIONS,
    "timestep_spacing": SPACINGS,
    "steps_offset": [0, 1],
}
DDIM = {**COMMON, "beta_schedule": ["linear", "squaredcos_cap_v2"], "clip_sample": [True, False],
        "clip_sample_range": [1.0, 0.5], "set_alpha_to_one": [True, False],
        "rescale_betas_zero_snr": [False, True]}  # fmt: skip
DPM = {**COMMON, **SIGMAS, "solver_order": [1, 2, 3], "solver_type": ["midpoint", "heun"], "algorithm_type":
       ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"], "final_sigmas_type": ["zero", "sigma_min"],
       "lower_order_final": [True, False], "euler_at_final": [False, True]}  # fmt: skip
FLOW = {"shift": [1.0, 3.0], "stochastic_sampling": [False, True], **SIGMAS}
SETTINGS = {
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DDIMInverseScheduler": {"prediction_type": PREDICTIONS, "clip_sample": [True, False]},
    "CogVideoXDDIMScheduler": {"prediction_type": PREDICTIONS, "rescale_betas_zero_snr": [False, True]},
    "DDPMScheduler": {**DDIM, "variance_type": ["fixed_small", "fixed_small_log", "fixed_large"]},
    "DDPMParallelScheduler": {**DDIM, "variance_type": ["fixed_small", "fixed_large"]},
    "EulerDiscreteScheduler": {**COMMON, **SIGMAS, "interpolation_type": ["linear", "log_linear"],
                               "timestep_type": ["discrete", "continuous"], "final_sigmas_type": ["zero", "sigma_min"],
                               "rescale_betas_zero_snr": [False, True]},
    "EulerAncestralDiscreteScheduler": {**COMMON, "rescale_betas_zero_snr": [False, True]},
    "HeunDiscreteScheduler": {**COMMON, **SIGMAS, "clip_sample": [False, True]},
    "KDPM2DiscreteScheduler": {**COMMON, **SIGMAS},
    "KDPM2AncestralDiscreteScheduler": {**COMMON, **SIGMAS},
    "LMSDiscreteScheduler": {**COMMON, **SIGMAS},
    "PNDMScheduler": {**COMMON, "skip_prk_steps": [True, False], "set_alpha_to_one": [True, False]},
    "IPNDMScheduler": {},
    "DPMSolverMultistepScheduler": {**DPM, "lambda_min_clipped": [-float("inf"), -5.1], "use_lu_lambdas": [False]},
    "DPMSolverSinglestepScheduler": DPM,
    "DPMSolverMultistepInverseScheduler": DPM,
    "DEISMultistepScheduler": {**COMMON, **SIGMAS, "solver_order": [1, 2, 3]},
    "UniPCMultistepScheduler": {**COMMON, **SIGMAS, "solver_order": [1, 2, 3], "solver_type": ["bh1", "bh2"],
                                "final_sigmas_type": ["zero", "sigma_min"], "disable_corrector": [[], [0, 1]],
                                "lower_order_final": [True, False]},
    "SASolverScheduler": {**COMMON, "predictor_order": [1, 2, 3], "corrector_order": [1, 2, 3]},
    "LCMScheduler": {**COMMON, "clip_sample": [False, True]},
    "TCDScheduler": {**COMMON},
    "CMStochasticIterativeScheduler": {"clip_denoised": [True, False]},
    "EDMEulerScheduler": {"prediction_type": ["epsilon", "v_prediction"], "sigma_schedule": ["karras", "exponential"]},
    "EDMDPMSolverMultistepScheduler": {"solver_order": [1, 2, 3], "solver_type": ["midpoint", "heun"],
                                       "algorithm_type": ["dpmsolver++", "sde-dpmsolver++"]},
    "FlowMatchEulerDiscreteScheduler": FLOW,
    "FlowMatchHeunDiscreteScheduler": {"shift": [1.0, 3.0]},
    "FlowMatchLCMScheduler": {"shift": [1.0, 3.0]},
    "UnCLIPScheduler": {"prediction_type": ["epsilon", "sample"], "clip_sample": [True, False]},
}  # fmt: skip


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


def loop(scheduler, steps, dtype=torch.float64, begin=0, seed=0, **arguments):
    """States and predicted x0 of a loop with a made-up network."""
    scheduler.set_timesteps(steps)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    names = inspect.signature(scheduler.step).parameters
    arguments = {key: value for key, value in arguments.items() if key in names}
    if "generator" in names:
        arguments["generator"] = torch.Generator().manual_seed(seed + 1)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 6, 8, generator=generator, dtype=torch.float64).to(dtype)
    x, found = x * float(getattr(scheduler, "init_noise_sigma", 1.0)), []
    for t in scheduler.timesteps[begin:]:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        result = scheduler.step(0.7 * torch.tanh(scaled), t, x, **arguments)
        x = result.prev_sample
        assert x.dtype == dtype
        found.append(x)
        if hasattr(result, "pred_original_sample"):
            found.append(result.pred_original_sample)
    return torch.stack(found)


def same(ours, theirs, bound):
    """Each state within a part of the largest value of diffusers' state."""
    assert theirs.isfinite().all()
    largest = abs(theirs).flatten(1).amax(1)[(..., *[None] * (theirs.ndim - 1))]
    assert (abs(ours - theirs) <= bound * largest).all()


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


def tensor(seed, *shape):
    return torch.randn(shape or (2, 4, 6, 8), generator=torch.Generator().manual_seed(seed))


def both(name, options=None, steps=6):
    """diffusers' scheduler and ours, with their steps chosen."""
    theirs = getattr(diffusers, name)(**(options or {}))
    ours, reason = scheduler_for(theirs)
    assert ours is not None, reason
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps)
    return theirs, ours


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
