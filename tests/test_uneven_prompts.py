"""Conditions that do not fit into one batch of cond and uncond: each half is what the network gives for it alone."""

import pytest
import torch

import fastdiff
from fastdiff import CFG, sample
from fastdiff.schedules import VPDiscrete

VP = VPDiscrete.linear()
SHAPE = (2, 3, 4, 4)
COMMON = dict(schedule=VP, steps=4, seed=0)
WORDS = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))


def attends(x, t, context, mask=None):
    """Depends on each word, on their number, and on the mask of one half."""
    weights = torch.softmax(context[..., 0] if mask is None else context[..., 0] + mask, -1)
    read = (weights[..., None] * context).sum(1)[:, :, None, None]
    return torch.tanh(x) * (1 + 0.1 * context.shape[1]) + read


def mixed(network, cond, uncond, scale):
    def model(x, t):
        a, b = network(x, t, **cond), network(x, t, **uncond)
        return b + scale * (a - b)

    return model


PAIRS = {
    "longer": (dict(context=WORDS), dict(context=WORDS[:, :5])),
    "shorter": (dict(context=WORDS[:, :5]), dict(context=WORDS[:, 1:])),
    "no words": (dict(context=WORDS), dict(context=WORDS[:, :1])),
    "one row": (dict(context=WORDS), dict(context=WORDS[:1, :5])),
    "one has a mask": (dict(context=WORDS, mask=torch.zeros(2, 12)), dict(context=WORDS, mask=None)),
    "masks": (dict(context=WORDS, mask=WORDS[..., 1]), dict(context=WORDS[:, :5], mask=WORDS[:, :5, 1])),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "ddpm", "rk45"])
@pytest.mark.parametrize("pair", PAIRS)
def test_each_half_is_that_of_a_call_of_its_own(backend, solver, pair):
    cond, uncond = PAIRS[pair]
    with fastdiff.use(backend):
        found = sample(attends, SHAPE, solver=solver, guidance=3.0, cond=cond, uncond=uncond, prediction="v", **COMMON)
        expected = sample(mixed(attends, cond, uncond, 3.0), SHAPE, solver=solver, prediction="v", **COMMON)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_with_several_scales_rescaling_intervals_and_learned_variances():
    cond, uncond = PAIRS["longer"]
    x = torch.randn(SHAPE)
    common = dict(cond=cond, uncond=uncond, prediction="v", **COMMON)
    one = sample(attends, x, guidance=CFG(3.0, rescale=0.7), **common)
    several = sample(attends, x, guidance=CFG([3.0, 3.0], rescale=0.7), **common)
    torch.testing.assert_close(several, one, rtol=1e-4, atol=1e-4)
    never = sample(attends, x, guidance=CFG(3.0, interval=(50.0, 60.0)), **common)
    torch.testing.assert_close(never, sample(attends, x, cond=cond, prediction="v", **COMMON))

    def variance(x, t, context):
        return torch.cat([attends(x, t, context), torch.tanh(x) * context.shape[1] / 20], 1)

    solver = fastdiff.solvers.get_solver("ddpm", variance="learned")
    common |= dict(prediction="eps+variance", solver=solver)
    found = sample(variance, x, guidance=3.0, **common)
    torch.testing.assert_close(sample(variance, x, guidance=[3.0, 3.0], **common), found, rtol=1e-3, atol=1e-3)
    a, b = (lambda x, t, half=half: variance(x, t, **half) for half in (cond, uncond))

    def halves(x, t):
        (first, learned), second = a(x, t).chunk(2, 1), b(x, t).chunk(2, 1)[0]
        return torch.cat([second + 3.0 * (first - second), learned], 1)

    alone = {key: value for key, value in common.items() if key not in ("cond", "uncond")}
    torch.testing.assert_close(found, sample(halves, x, **alone), rtol=1e-3, atol=1e-3)


def test_lists_of_one_prompt_a_sample():
    """As models take them whose prompts are packed, each of its own length."""

    def packed(x, t, prompts):
        return torch.stack(
            [torch.tanh(each) * len(words) + words.mean() for each, words in zip(x, prompts, strict=True)]
        )

    cond = {"prompts": [WORDS[0], WORDS[1, :4]]}
    uncond = {"prompts": [WORDS[0, :2], WORDS[1, :2]]}
    found = sample(packed, SHAPE, guidance=2.0, cond=cond, uncond=uncond, prediction="v", **COMMON)
    torch.testing.assert_close(found, sample(mixed(packed, cond, uncond, 2.0), SHAPE, prediction="v", **COMMON))


def test_prompts_of_one_length_stay_one_call():
    batches = []

    def model(x, t, context):
        batches.append(len(x))
        return attends(x, t, context)

    common = dict(prediction="v", guidance=3.0, **COMMON)
    sample(model, SHAPE, cond={"context": WORDS}, uncond={"context": -WORDS}, **common)
    assert batches == [4] * 4
    batches.clear()
    sample(model, SHAPE, cond={"context": WORDS}, uncond={"context": WORDS[:, :5]}, **common)
    assert batches == [2] * 8


@pytest.mark.parametrize(
    ("uncond", "message"),
    [
        (dict(context=WORDS[0]), r"must be \(2, \.\.\.\)"),
        (dict(context=WORDS[:, :, 0]), r"must be \(2, \.\.\.\) and alike, got \(2, 12, 3\) and \(2, 12\)"),
        (dict(other=WORDS), "must have the same keys"),
        (dict(context="words"), "must be equal, or both tensors"),
    ],
)
def test_what_is_no_pair(uncond, message):
    with pytest.raises(ValueError, match=message):
        sample(attends, SHAPE, guidance=2.0, cond=dict(context=WORDS), uncond=uncond, prediction="v", **COMMON)


def test_what_a_model_keeps_is_not_for_the_other_half():
    """Features that are kept from call to call are of the half that they were computed for."""
    model = fastdiff.load("emoji-ldm-64")
    cond, uncond = model.info.condition("red apple", 1), model.info.condition(None, 1)
    shorter = {**uncond, "context": uncond["context"][:, :3]}
    z = torch.randn(1, *model.info.shape, generator=torch.Generator().manual_seed(0))
    common = dict(steps=4, guidance=2.0, cond=cond, uncond=shorter)
    plain = sample(model, z, **common)
    cached = sample(fastdiff.caching.Cached(model, "deep:2"), z, **common)
    one, other = fastdiff.caching.Cached(model, "deep:2"), fastdiff.caching.Cached(model, "deep:2")

    def apart(x, t):
        uncond = other(x, t, **shorter)
        return uncond + 2.0 * (one(x, t, **cond) - uncond)

    apart.info = model.info
    expected = sample(apart, z, steps=4)
    torch.testing.assert_close(cached, expected, rtol=1e-4, atol=1e-4)
    assert (cached - expected).abs().max() < 1e-2 * (cached - plain).abs().max()


@pytest.mark.parametrize("optimized", [False, True])
def test_stable_diffusions_network(optimized):
    config = dict(block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
                  attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), in_channels=4, out_channels=4)  # fmt: skip
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(sample_size=8, **config).eval()
    network = fastdiff.optimize(unet) if optimized else unet
    long, short = torch.randn(1, 154, 16), torch.randn(1, 77, 16)
    x = torch.randn(1, 4, 8, 8)
    halves = dict(cond={"encoder_hidden_states": long}, uncond={"encoder_hidden_states": short})
    found = sample(network, x, guidance=5.0, prediction="eps", schedule="scaled-linear", steps=3, **halves)
    original = mixed(lambda *a, **k: unet._call_impl(*a, **k).sample, halves["cond"], halves["uncond"], 5.0)
    expected = sample(original, x, prediction="eps", schedule="scaled-linear", steps=3)
    assert float((found - expected).abs().max() / expected.std()) < 1e-3
