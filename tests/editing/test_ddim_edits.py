"""Inversion, null-text inversion, DiffEdit and MagicMix on Gaussian data, whose mean the condition moves."""

import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian

import fastdiff
from fastdiff.editing import diffedit, diffedit_mask, invert, magicmix, null_text_inversion
from fastdiff.schedules import VPDiscrete

SCHEDULE = VPDiscrete.linear()
DATA = Gaussian(SCHEDULE)
COMMON = dict(schedule=SCHEDULE, prediction="eps")
SHAPE = (2, 3, 4, 4)
X0 = DATA.mean + DATA.std * torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def plain(x, t):
    return DATA.network("eps", lambda n: (n + 1) / 1000)(x, t)


def moved(x, t, shift):
    """Data of the mean 0.6 + shift, (B or 1, C or 1, H, W): eps is linear in x - alpha mean."""
    alpha = SCHEDULE.point((float(t[0]) + 1) / 1000).alpha
    return plain(x - alpha * shift, t)


def shift(value, half=None):
    made = torch.full((1, 1, 4, 4), float(value), dtype=torch.float64)
    if half is not None:
        made[..., half:] = 0
    return {"shift": made}


@pytest.mark.parametrize("evaluate", ["start", "end"])
def test_inversion_follows_the_ode(evaluate):
    errors = {}
    for steps in (50, 200):
        states = invert(plain, X0, steps=steps, evaluate=evaluate, **COMMON)
        assert states.shape == (steps + 1, *SHAPE)
        assert torch.equal(states[0], X0)
        errors[steps] = relative_error(states[-1], DATA.exact(X0, SCHEDULE.t_min, 1.0))
    assert errors[200] < errors[50] / 2.5 < 0.1


def test_inversion_agrees_with_encode():
    times = [0.9, 0.5, 0.2, 0.05]
    states = invert(plain, X0, grid=times, **COMMON)
    assert relative_error(states[-1], fastdiff.encode(plain, X0, grid=times, **COMMON)) < 1e-12


def test_an_uncond_without_guidance_is_said():
    with pytest.warns(UserWarning, match="uncond is not used, as there is no guidance") as caught:
        states = invert(moved, X0, steps=3, cond=shift(0.5), uncond=shift(0.0), **COMMON)
    assert [each.filename for each in caught] == [__file__]
    assert torch.equal(states, invert(moved, X0, steps=3, cond=shift(0.5), **COMMON))


def test_guided_sampling_comes_back_with_null_text_inversion():
    common = dict(steps=10, cond=shift(0.5), **COMMON)
    states = invert(moved, X0, **common)
    found = {
        n: null_text_inversion(
            moved, states, name="shift", guidance=3.0, uncond=shift(0.0), inner_steps=n, lr=0.05, **common
        )
        for n in (0, 20)
    }
    before, after = (relative_error(found[n].states[-1], X0) for n in (0, 20))
    assert after < before / 4
    assert len(found[20].uncond) == 10
    assert found[0].losses == [[]] * 10


def test_the_mask_is_where_the_texts_differ():
    mask = diffedit_mask(moved, X0, source=shift(0.0), target=shift(1.0, half=2), maps=3, seed=0, **COMMON)
    assert mask.shape == (2, 4, 4)
    assert mask[..., :2].eq(1).all()
    assert mask[..., 2:].eq(0).all()


def test_diffedit_changes_the_masked_part_alone():
    mask = torch.zeros(1, 4, 4)
    mask[..., :2] = 1
    given = dict(source=shift(0.0), target=shift(1.0), steps=20, **COMMON)
    edited = diffedit(moved, X0, mask, **given)
    assert torch.equal(edited[..., 2:], X0[..., 2:])
    assert (edited - X0)[..., :2].mean() > 0.5
    published = diffedit(moved, X0, mask, blend="start", **given)
    assert torch.equal(published[..., :2], edited[..., :2])  # pixels do not see each other in this model
    assert not torch.equal(published[..., 2:], X0[..., 2:])


def test_magicmix_keeps_the_picture_where_v_is_small():
    distances = [
        relative_error(magicmix(moved, X0, v=v, cond=shift(1.0), steps=20, seed=0, **COMMON), X0) for v in (0.1, 0.9)
    ]
    assert distances[0] < distances[1]
    same = magicmix(moved, X0, v=1.0, cond=shift(1.0), steps=20, seed=0, **COMMON)
    unmixed = magicmix(moved, X0, v=1.0, cond=shift(1.0), steps=20, seed=0, step_from="unmixed", **COMMON)
    assert torch.equal(same, unmixed)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 4, 5), "mask must be"),
        (torch.zeros(2, 4, 4), "nothing would change"),
        (torch.full((2, 4, 4), 0.5), "must hold 0 and 1"),
        (torch.ones(3, 4, 4), "mask must be"),
    ],
)
def test_masks_that_do_not_fit(mask, message):
    with pytest.raises(ValueError, match=message):
        diffedit(refuses, X0, mask, **COMMON)


def refuses(*args, **kwargs):
    raise AssertionError("the model was called")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: invert(refuses, X0, evaluate="middle", **COMMON), "'start' or 'end'"),
        (lambda: invert(refuses, X0, grid=[0.1, 0.5], **COMMON), "decreasing times"),
        (lambda: invert(refuses, X0, guidance=2.0, **COMMON), "guidance needs uncond"),
        (lambda: diffedit(refuses, X0, torch.ones(1, 4, 4), strength=0.0, **COMMON), "strength"),
        (lambda: diffedit_mask(refuses, X0, noise=X0[:1], **COMMON), "noise must be"),
        (lambda: magicmix(refuses, X0, k_min=0.7, **COMMON), "k_min <= k_max"),
        (lambda: null_text_inversion(refuses, X0[None], **COMMON), "states must be the 51"),
        (lambda: null_text_inversion(refuses, X0.expand(3, *SHAPE), steps=2, **COMMON), "must hold the embedding"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_called(call, message):
    with pytest.raises(ValueError, match=message):
        call()
