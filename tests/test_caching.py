"""Reuse across steps: exact where nothing is reused, off unless asked for, and forgotten between runs."""

import pytest
import torch

import fastdiff
from fastdiff.caching import Cached, Caching
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.unet import UNet, UNetConfig


def randomized(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # the output layer begins at zero
    return model.eval().requires_grad_(False)


def unet():
    return randomized(UNet(UNetConfig((16, 16, 32), 1, (2,), head_channels=16, embedding_channels=16, groups=4)))


def dit():
    config = DiTConfig(
        input_size=8, in_channels=3, hidden_size=32, depth=4, num_heads=2, num_classes=3, learn_sigma=False
    )
    model = randomized(DiT(config))
    return lambda x, t: model(x, t, torch.zeros(len(x), dtype=torch.long)), model


MODELS = {"deep": unet, "blocks": lambda: dit()[1]}


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


def arguments(kind, t, seed=0):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    extra = {"y": torch.tensor([0, 1])} if kind == "blocks" else {}
    return (x, torch.full((2,), float(t))), extra


def test_a_full_call_is_the_model(kind):
    model = MODELS[kind]()
    cached = Cached(model, f"{kind}:2")
    for t in (900, 100):
        (x, times), extra = arguments(kind, t)
        cached.cache.reset()
        torch.testing.assert_close(cached(x, times, **extra), model(x, times, **extra), rtol=0, atol=0)
    assert (cached.cache.full, cached.cache.reused) == (2, 0)


def test_reuse_for_the_same_input_is_exact(kind):
    """What is kept depends on the input alone, so the same input again gives the same output."""
    model = MODELS[kind]()
    cached = Cached(model, f"{kind}:3")
    (x, times), extra = arguments(kind, 500)
    first = cached(x, times, **extra)
    torch.testing.assert_close(cached(x, times, **extra), first, rtol=1e-6, atol=1e-6)
    assert (cached.cache.full, cached.cache.reused) == (1, 1)


def test_every(kind):
    model = MODELS[kind]()
    cached = Cached(model, f"{kind}:3")
    differences = []
    for number, t in enumerate(range(900, 0, -100)):
        (x, times), extra = arguments(kind, t, seed=number)
        differences.append(float((cached(x, times, **extra) - model(x, times, **extra)).abs().max()))
    assert (cached.cache.full, cached.cache.reused) == (3, 6)
    assert [d == 0 for d in differences] == [True, False, False] * 3


def test_threshold(kind):
    model = MODELS[kind]()
    for threshold, full in ((1e-9, 5), (1e9, 1)):
        cached = Cached(model, f"{kind}:t={threshold}")
        for number, t in enumerate((900, 700, 500, 300, 100)):
            (x, times), extra = arguments(kind, t, seed=number)
            cached(x, times, **extra)
        assert cached.cache.full == full


def test_a_run_begins_anew_at_a_later_time_or_another_shape(kind):
    cached = Cached(MODELS[kind](), f"{kind}:100")
    (x, times), extra = arguments(kind, 500)
    cached(x, times, **extra)
    cached(x, times - 100, **extra)
    assert cached.cache.full == 1
    cached(x, times, **extra)
    assert cached.cache.full == 2
    cached(x[:1], times[:1] - 1, **{key: value[:1] for key, value in extra.items()})
    assert cached.cache.full == 3


def test_depth_says_what_is_always_run():
    model = unet()
    cached = [Cached(model, f"deep:t=1e9@{depth}") for depth in (1, 3)]
    (x, times), _ = arguments("deep", 600)
    (later, later_times), _ = arguments("deep", 500, seed=1)
    exact = model(later, later_times)
    errors = []
    for network in cached:
        network(x, times)
        errors.append(float((network(later, later_times) - exact).square().mean()))
    assert errors[1] < errors[0]
    with pytest.raises(ValueError, match="depth must be less than the 5 stages"):
        Cached(model, "deep:2@5")


def test_sampling_leaves_the_model_as_it_was():
    model = unet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = dict(schedule="cosine", prediction="v", solver="ddim", steps=6, seed=0)
    exact = fastdiff.sample(model, (2, 3, 8, 8), **options)
    reused = fastdiff.sample(Cached(model, "deep:2"), (2, 3, 8, 8), **options)
    assert not torch.equal(exact, reused)
    torch.testing.assert_close(fastdiff.sample(model, (2, 3, 8, 8), **options), exact, rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("text", "caching"),
    [
        ("deep:3", Caching("deep", every=3)),
        ("blocks:t=0.1", Caching("blocks", threshold=0.1)),
        ("deep:2@3", Caching("deep", every=2, depth=3)),
    ],
)
def test_parse(text, caching):
    assert Caching.parse(text) == caching


def test_the_other_kind_of_model_is_refused():
    with pytest.raises(TypeError, match="needs one of fastdiff's U-Nets, got DiT"):
        Cached(dit()[1], "deep:2")
    with pytest.raises(TypeError, match="needs one of fastdiff's DiTs, got UNet"):
        Cached(unet(), "blocks:2")
