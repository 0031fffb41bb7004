"""`optimize(reuse=)`: the numbers of `Cached`, a full call first in each run, and nothing kept across runs."""

import threading
import warnings

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.caching import Cached, Caching
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.runtime import runs


def randomized(make):
    """The same weights each time."""
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # the output layer begins at zero
    return model.eval().requires_grad_(False)


def unet():
    return randomized(lambda: UNet(UNetConfig((16, 32), 1, (), embedding_channels=16, groups=4)))


def dit():
    sizes = dict(input_size=8, in_channels=3, hidden_size=32, depth=3, num_heads=2, num_classes=3)
    return randomized(lambda: DiT(DiTConfig(**sizes, learn_sigma=False)))


MODELS = {"deep": unet, "blocks": dit}


def arguments(kind, t, seed=0, label=0, batch=2):
    x = (0.7 + t / 3000) * torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (x, torch.full((batch,), float(t))), {"y": torch.full((batch,), label)} if kind == "blocks" else {}


def loop(model, kind, times=range(900, 200, -100), seed=None, **options):
    """The results of a run of calls. seed: of all pictures, which then change little from call to call."""
    calls = [arguments(kind, t, seed=t if seed is None else seed, **options) for t in times]
    with torch.no_grad():
        return [model(*a, **named) for a, named in calls]


def graph(model):
    """What runs in the model's place, with its counts of calls: that of the first shapes."""
    return model._compiled_call_impl.reports[0].graph


@pytest.fixture(scope="module", params=MODELS)
def every(request):
    """A kind, the model as it is, and the model that reuses twice after each full call."""
    kind = request.param
    model = MODELS[kind]()
    fast = fastdiff.optimize(MODELS[kind](), reuse=f"{kind}:3")
    loop(fast, kind)
    return kind, model, fast


@pytest.fixture(autouse=True)
def begin(request):
    """Each test with a run of its own."""
    if "every" in request.fixturenames:
        fastdiff.refresh(request.getfixturevalue("every")[2])


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_numbers_are_those_of_cached(every):
    kind, model, fast = every
    cached, reused = Cached(model, f"{kind}:3"), graph(fast)
    before = reused.full, reused.reused
    close(loop(fast, kind), loop(cached, kind))
    assert (reused.full - before[0], reused.reused - before[1]) == (cached.cache.full, cached.cache.reused) == (3, 4)
    assert (loop(fast, kind)[1] - loop(model, kind)[1]).abs().max() > 1e-3  # it does reuse


@pytest.mark.parametrize("rule", ["deep:full=0+1+4", "deep:t=0.07", "blocks:t=0.07"])
def test_other_rules(rule):
    kind = rule.partition(":")[0]
    fast, cached = fastdiff.optimize(MODELS[kind](), reuse=Caching.parse(rule)), Cached(MODELS[kind](), rule)
    close(loop(fast, kind, seed=0), loop(cached, kind, seed=0))
    assert (graph(fast).full, graph(fast).reused) == (cached.cache.full, cached.cache.reused)
    assert graph(fast).full > 1
    assert graph(fast).reused > 1


def test_a_run_begins_where_the_time_goes_back(every):
    kind, _, fast = every
    first = loop(fast, kind)
    loop(fast, kind, range(950, 700, -100))  # ends in the middle of a period
    for a, b in zip(loop(fast, kind), first, strict=True):
        assert torch.equal(a, b)


def test_a_run_begins_when_told(every):
    kind, model, fast = every
    ((x, times), extra), ((other, _), _) = arguments(kind, 500), arguments(kind, 500, seed=1)
    with torch.no_grad():
        fast(x, times, **extra)
        assert not torch.allclose(fast(other, times, **extra), model(other, times, **extra), atol=1e-4)
        fastdiff.caching.reset(fast)
        close([fast(other, times, **extra)], [model(other, times, **extra)])


def test_rising_times_are_one_run_once_they_are_known(every):
    kind, model, fast = every
    times = range(100, 900, 100)
    loop(fast, kind, times)
    expected = loop(Cached(model, f"{kind}:3"), kind, times)
    close(loop(fast, kind, times), expected)
    loop(fast, kind)  # and back


def test_shapes_have_caches_of_their_own(every):
    kind, model, fast = every
    sizes = [loop(Cached(model, f"{kind}:3"), kind, batch=batch) for batch in (2, 3)]
    both = []
    for t in range(900, 200, -100):
        both.append([loop(fast, kind, [t], batch=batch)[0] for batch in (2, 3)])
    for found, expected in zip(zip(*both), sizes, strict=True):
        close(found, expected)


def test_a_guided_pair_keeps_apart():
    model, fast = dit(), fastdiff.optimize(dit(), reuse="blocks:2")
    expected = [loop(Cached(model, "blocks:2"), "blocks", label=label) for label in (1, 3)]
    both = [[loop(fast, "blocks", [t], label=label)[0] for label in (1, 3)] for t in range(900, 200, -100)]
    for found, wanted in zip(zip(*both), expected, strict=True):
        close(found, wanted)


def test_threads_keep_apart(every):
    kind, _, fast = every
    expected = loop(fast, kind)
    found, barrier = {}, threading.Barrier(2)

    def run(name):
        found[name] = []
        for t in range(900, 200, -100):
            barrier.wait()
            found[name] += loop(fast, kind, [t])

    threads = [threading.Thread(target=run, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(2):
        for a, b in zip(found[name], expected, strict=True):
            assert torch.equal(a, b)


def test_a_changed_weight_is_seen_in_the_middle_of_a_run(every):
    kind, _, fast = every
    changed = MODELS[kind]()
    weight = next(p for name, p in reversed([*fast.named_parameters()]) if "attention" in name or "middle" in name)
    name = next(name for name, p in fast.named_parameters() if p is weight)
    ((x, times), extra) = arguments(kind, 500)
    with torch.no_grad():
        fast(x, times, **extra)
        for each in (weight, dict(changed.named_parameters())[name]):
            each.mul_(1.5)
        try:
            close([fast(x, times - 1, **extra)], [changed(x, times - 1, **extra)])
        finally:
            weight.div_(1.5)


def test_verify_reuses_nothing_and_says_so(every):
    kind, _, fast = every
    loop(fast, kind)
    a, named = arguments(kind, 100, seed=5)
    result = fastdiff.verify(fast, fast, (a, named))
    assert result.ok, str(result)
    assert "reuse across steps was off" in str(result)


def test_explain_shows_it(every):
    kind, _, fast = every
    loop(fast, kind)
    text = str(fastdiff.explain(fast))
    assert f"{kind}:3: " in text
    assert "% of the multiplications" in text
    assert f"{graph(fast).full} full calls, {graph(fast).reused} that reuse" in text


def test_counting_reads_no_values(every, monkeypatch):
    """Within `fastdiff.sample` and pipelines: on a GPU a value that Python reads is waited for."""

    def read(*_):
        raise AssertionError("a tensor's value was read")

    kind, _, fast = every
    loop(fast, kind)  # convolutions look at their weights once
    with runs.one():
        for name in ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__"):
            monkeypatch.setattr(torch.Tensor, name, read)
        loop(fast, kind)


def test_each_sampling_run_begins_anew(every):
    kind, model, fast = every
    extra = {"cond": {"y": torch.tensor([0, 1])}} if kind == "blocks" else {}
    options = dict(schedule="cosine", prediction="v", solver="ddim", steps=5, seed=0, **extra)
    first, second = (fastdiff.sample(fast, (2, 3, 8, 8), **options) for _ in range(2))
    assert torch.equal(first, second)
    close([first], [fastdiff.sample(Cached(model, f"{kind}:3"), (2, 3, 8, 8), **options)])


def test_restore_removes_it():
    fast = fastdiff.optimize(unet(), reuse="deep:2")
    loop(fast, "deep", (900, 800))
    fastdiff.restore(fast)
    for a, b in zip(loop(fast, "deep"), loop(unet(), "deep"), strict=True):
        assert torch.equal(a, b)


def test_the_error_falls_with_the_threshold():
    exact, errors = loop(dit(), "blocks", seed=0), []
    for threshold in (0.5, 0.08, 0.04, 1e-9):
        fast = fastdiff.optimize(dit(), reuse=f"blocks:t={threshold}@0")
        found = loop(fast, "blocks", seed=0)
        errors.append(float(sum((a - b).square().mean() for a, b in zip(found, exact, strict=True))))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-9


class Plain(nn.Module):
    """Neither skips nor blocks, nor a time."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("make", "rule", "reason"),
    [
        (Plain, "deep:2", "the graph joins no skip by concatenation"),
        (Plain, "blocks:2", "the graph has no chain of blocks alike"),
        (unet, "deep:2@9", "depth must be at least 1 and less than the 4 skips"),
        (unet, "blocks:2", "no chain of blocks alike|% of the multiplications: this is no transformer"),
    ],
)
def test_a_model_without_a_place_to_cut_says_so(make, rule, reason):
    model = make().eval()
    given = (torch.ones(2, 4),) if make is Plain else arguments("deep", 500)[0]
    expected = model(*given).detach()
    fastdiff.optimize(model, reuse=rule)
    with torch.no_grad(), pytest.warns(UserWarning, match=f'reuse "{rule}" is not in force: .*({reason})'):
        found = model(*given)
    close([found], [expected])
    assert "is not in force" in str(fastdiff.explain(model))


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ("deep:t=0", "threshold must be positive and finite"),
        ("deep:t=nan", "threshold must be positive and finite"),
        ("deep:t=inf", "threshold must be positive and finite"),
        ("deep:1", "every must be a whole number >= 2"),
        ("deep:full=1+2", "full must be increasing numbers of calls that begin with 0"),
        ("deep:full=0+2+2", "full must be increasing numbers of calls that begin with 0"),
        ("blocks:2@-1", "depth must be >= 0"),
        ("deep", "caching must be like"),
        ("shallow:2", "unknown caching 'shallow'"),
    ],
)
def test_rules_that_cannot_be(rule, error):
    with pytest.raises(ValueError, match=error):
        fastdiff.optimize(unet(), reuse=rule)


def test_another_type_is_refused():
    with pytest.raises(TypeError, match="reuse must be a Caching, or like"):
        fastdiff.optimize(unet(), reuse=3)


def test_without_a_time_all_calls_are_full_until_told():
    class Timeless(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = unet()

        def forward(self, x):
            return self.network(x, torch.full((len(x),), 500.0))

    fast = fastdiff.optimize(Timeless(), reuse="deep:2")
    (x, _), _ = arguments("deep", 500)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(x), fast(x)
        assert (graph(fast).full, graph(fast).reused) == (0, 0)
        assert "nothing says where a run begins" in str(fastdiff.explain(fast))
        fastdiff.caching.reset(fast)
        fast(x), fast(x)
    assert (graph(fast).full, graph(fast).reused) == (1, 1)
