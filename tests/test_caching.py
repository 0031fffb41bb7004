"""Reuse across steps: exact where nothing is reused, off unless asked for, and forgotten between runs."""

import warnings

import pytest
import torch

import fastdiff
from fastdiff.caching import Cached, Caching
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.edm import SongConfig, SongUNet
from fastdiff.models.ldm import LDMConfig, LDMUNet
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
    cached = Cached(MODELS[kind](), f"{kind}:t=1e9")
    (x, times), extra = arguments(kind, 500)
    cached(x, times, **extra)
    cached(x, times - 100, **extra)
    assert cached.cache.full == 1
    cached(x, times, **extra)
    assert cached.cache.full == 2
    cached(x[:1], times[:1] - 1, **{key: value[:1] for key, value in extra.items()})
    assert cached.cache.full == 3


def test_a_counted_run_begins_anew_when_told_or_at_another_shape(kind):
    cached = Cached(MODELS[kind](), f"{kind}:100")
    (x, times), extra = arguments(kind, 500)
    for _ in range(3):
        cached(x, times, **extra)
    assert cached.cache.full == 1
    cached.reset()
    cached(x, times, **extra)
    assert cached.cache.full == 2
    cached(x[:1], times[:1], **{key: value[:1] for key, value in extra.items()})
    assert cached.cache.full == 3


@pytest.mark.parametrize("solver", ["ddim", "heun", "rk45"])
def test_each_sampling_run_begins_anew(solver):
    """Also where the cache is inside something else, and with another run's calls left over."""
    model = unet()
    cached = Cached(model, "deep:10000")
    options = dict(schedule="cosine", prediction="v", solver=solver, steps=3, seed=0)
    samples = [fastdiff.sample(lambda x, t: 0.5 * cached(x, t), (2, 3, 8, 8), **options) for _ in range(2)]
    assert torch.equal(*samples)
    assert cached.cache.full == 2
    (x, times), _ = arguments("deep", 500)
    cached(x, times)
    assert cached.cache.full == 3


def test_counting_reads_no_values(kind, monkeypatch):
    """On a GPU a value that Python reads is waited for, and a graph cannot be captured."""

    def read(*_):
        raise AssertionError("a tensor's value was read")

    (x, times), extra = arguments(kind, 500)
    model = MODELS[kind]()
    counted, compared = (Cached(model, f"{kind}:{rule}") for rule in ("2", "t=0.1"))
    for name in ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, read)
    for _ in range(4):
        counted(x, times, **extra)
    assert (counted.cache.full, counted.cache.reused) == (2, 2)
    with pytest.raises(AssertionError, match="value was read"):
        compared(x, times, **extra)


def test_a_call_that_fails_leaves_nothing_behind(kind):
    model = MODELS[kind]()
    cached = Cached(model, f"{kind}:2")
    (x, times), extra = arguments(kind, 500)
    cached(x, times, **extra)
    cached(x, times, **extra)
    last = (model.down if kind == "deep" else model.blocks)[-1]
    hook = last.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cached(x, times, **extra)
    hook.remove()
    assert torch.equal(cached(2 * x, times, **extra), model(2 * x, times, **extra))


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


class Around(torch.nn.Module):
    """A network of the user's with one of ours in it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t):
        return self.network(x, t)


class Passing(Around):
    def forward(self, x, t, **options):
        return self.network(x, t, **options)


def test_a_module_around_a_network_must_pass_reuse_on():
    model = unet()
    with pytest.raises(TypeError, match="passes `reuse` on to its network, got Around"):
        Cached(Around(model), "deep:2")
    (x, times), _ = arguments("deep", 500)
    cached = Cached(Passing(model), "deep:2")
    for _ in range(2):
        cached(x, times)
    assert (cached.cache.full, cached.cache.reused) == (1, 1)


def test_a_picture_that_enters_at_each_level_is_refused():
    config = SongConfig(8, 3, 3, model_channels=32, channel_mult=(1, 2), num_blocks=1, encoder_type="residual")
    (x, _), _ = arguments("deep", 500)
    with pytest.raises(ValueError, match="reuse needs encoder_type and decoder_type 'standard'"):
        Cached(SongUNet(config), "deep:2")(x, torch.ones(2))


def test_an_optimised_network_is_captured_whole():
    """Once for full calls and once for those that reuse, without a warning."""
    model = unet()
    expected, optimised = Cached(model, "deep:3"), Cached(fastdiff.optimize(model), "deep:3")
    calls = [arguments("deep", t, seed=t)[0] for t in range(900, 200, -100)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        found = [optimised(*call) for call in calls]
    fastdiff.restore(model)
    for one, call in zip(found, calls):
        torch.testing.assert_close(one, expected(*call), rtol=1e-4, atol=1e-5)
    assert (optimised.cache.full, optimised.cache.reused) == (3, 4)


def prompted():
    config = LDMConfig(
        image_size=8, in_channels=4, model_channels=32, out_channels=4, num_res_blocks=1, attention_resolutions=(1,),
        channel_mult=(1, 2), num_heads=4, use_spatial_transformer=True, transformer_depth=1, context_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)  # the same weights each time
    return randomized(LDMUNet(config))


class Guided:
    """Guidance by hand, the two outputs by two networks that share nothing."""

    def __init__(self, networks, prompts, scale):
        self.networks, self.prompts, self.scale = networks, prompts, scale

    def __call__(self, x, t):
        cond, uncond = (network(x, t, prompt) for network, prompt in zip(self.networks, self.prompts, strict=True))
        return uncond + self.scale * (cond - uncond)


@pytest.mark.parametrize(
    ("how", "rule", "solver", "guidance"),
    [
        ("cached", "deep:3", "ddim", 3.0),
        ("cached", "deep:t=0.5", "dpmpp-2m", 3.0),
        ("cached", "deep:3", "ddim", (3.0, 1.5)),
        ("cached", "deep:3", "dpm-adaptive", 3.0),
        ("optimized", "deep:3", "ddim", 3.0),
    ],
    ids=["every", "threshold", "scales", "adaptive", "optimized"],
)
def test_prompts_of_different_lengths_reuse_apart(how, rule, solver, guidance):
    """Guided, these are two calls a step: each takes what it kept itself."""
    prompts = [torch.randn(2, length, 16, generator=torch.Generator().manual_seed(length)) for length in (7, 5)]
    make = (lambda: Cached(prompted(), rule)) if how == "cached" else lambda: fastdiff.optimize(prompted(), reuse=rule)
    options = dict(schedule="cosine", prediction="x0", solver=solver, seed=0)
    if solver != "dpm-adaptive":
        options["steps"] = 7
    scale = torch.tensor(guidance)[:, None, None, None] if isinstance(guidance, tuple) else guidance
    pair = [make(), make()]
    expected = fastdiff.sample(Guided(pair, prompts, scale), (2, 4, 8, 8), **options)
    network = make()
    named = [{"context": prompt} for prompt in prompts]
    found = fastdiff.sample(network, (2, 4, 8, 8), cond=named[0], uncond=named[1], guidance=guidance, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if how == "cached":
        assert network.cache.reused == sum(each.cache.reused for each in pair) > 0
        assert network.cache.full == sum(each.cache.full for each in pair) > 2
    else:
        exact = fastdiff.sample(prompted(), (2, 4, 8, 8), cond=named[0], uncond=named[1], guidance=guidance, **options)
        assert not torch.allclose(found, exact, rtol=1e-3, atol=1e-3)
