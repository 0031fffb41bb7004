"""conv2d against float64: every instruction set and algorithm, sizes that fill no tile, epilogues, changed weights."""

import itertools

import pytest
import torch
from conftest import assert_no_worse
from torch import nn

import fastdiff
from fastdiff.ops.conv2d import Arguments, conv2d
from fastdiff.ops.conv2d_algorithms import ALGORITHMS, MEMORY, Problem, choices, choose, explain
from fastdiff.ops.conv2d_weights import packed
from fastdiff.runtime.dispatcher import wants_gradient
from fastdiff.runtime.native import core

reference = conv2d.plain.positional


def supports(*values, **named):
    return conv2d.unsupported(Arguments(*values, **named))


def faster_in_torch(*values, **named):
    a = Arguments(*values, **named)
    return conv2d.slower(a) or (conv2d.slower_backward(a) if wants_gradient(a) else None)


# (N, C, H, W), K: of U-Nets, and what fills no tile, panel or block of channels.
CASES = [
    ((2, 64, 16, 16), 64),
    ((1, 320, 9, 7), 96),
    ((3, 20, 5, 6), 4),
    ((1, 4, 33, 12), 40),
    ((1, 47, 1, 1), 33),
    ((2, 130, 3, 18), 17),
    ((1, 16, 48, 40), 3),
    ((0, 8, 4, 4), 8),
]
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=ALGORITHMS)
def algorithm(request, isa):
    """Every algorithm on every instruction set that has it."""
    if request.param == "winograd-amx" and isa != "amx":
        pytest.skip(f"{isa} has no matrix units")
    return request.param


def make(shape, out_channels, *, seed=0, like="random"):
    """x, weight and bias; channels last, weights as networks are initialized."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if like == "smooth":
        x = x.cumsum(2).cumsum(3) / 8
    elif like == "silu":
        x = nn.functional.silu(2 * x)
    elif like == "outliers":
        x[:, ::7] *= 30
    weight = torch.randn(out_channels, shape[1], 3, 3, generator=generator) / (9 * shape[1]) ** 0.5
    bias = torch.randn(out_channels, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def check(x, weight, *rest, algorithm=None, skip=None):
    """At most twice torch's error, as x is stored; the floor is the rounding of the result and of its sums."""
    arguments = (x, skip, weight, *rest)
    assert supports(*arguments) is None
    options = list(rest) + [None, 1, 1, None, None, None, 1, 1.0][len(rest) :]
    ours = torch.ops.fastdiff.conv2d(x, skip, weight, *options, algorithm)
    theirs = reference(*arguments)
    oracle = reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in arguments))
    assert ours.dtype == x.dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    size = float(oracle.abs().max()) if oracle.numel() else 0.0
    reduction = torch.tensor(9.0 * weight.shape[1]).log2().item()
    assert_no_worse(ours, theirs, oracle, floor=size * EPS * (1 + reduction))


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("shape", "out_channels"), CASES)
def test_shapes(algorithm, shape, out_channels, padding):
    if min(shape[2:]) + 2 * padding < 3:
        pytest.skip("fewer pixels than the kernel has")
    x, weight, bias = make(shape, out_channels)
    check(x, weight, bias, 1, padding, algorithm=algorithm)


@pytest.mark.parametrize("like", ["random", "smooth", "silu", "outliers"])
@pytest.mark.parametrize("channels", [128, 640])
def test_accuracy(algorithm, channels, like):
    """Relative to the RMS of the result, at most twice torch's error in channels-last storage, with nothing added."""
    x, weight, _ = make((1, channels, 16, 16), 64, like=like)
    oracle = reference(x.double(), None, weight.double())
    ours = torch.ops.fastdiff.conv2d(x, None, weight, None, 1, 1, None, None, None, 1, 1.0, algorithm)
    assert_no_worse(ours, reference(x, None, weight), oracle)


@pytest.mark.parametrize("channels", [16, 69, 130])
def test_weights_on_the_fly_give_the_same_bits(isa, channels):
    """Their sums are cut at the same channels. Of 64 and 16, not 32 and 48, two draws in 60 broke the bound."""
    for seed in range(20):
        x, weight, bias = make((2, channels, 9, 8), 40, seed=seed)
        check(x, weight, bias, algorithm="winograd-on-the-fly")
        ahead, passing = (
            torch.ops.fastdiff.conv2d(x, None, weight, bias, 1, 1, None, None, None, 1, 1.0, way)
            for way in ("winograd", "winograd-on-the-fly")
        )
        assert torch.equal(passing, ahead)


@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=4)))
@pytest.mark.parametrize("upsample", [1, 2])
def test_epilogue(isa, present, upsample):
    x, weight, bias = make((2, 20, 5, 7), 35)
    residual, channel_bias = torch.randn(2, 35, 5 * upsample, 7 * upsample), torch.randn(2, 35)
    bias, residual, channel_bias, activation = (
        value if there else None for value, there in zip((bias, residual, channel_bias, "silu"), present)
    )
    check(x, weight, bias, 1, 1, residual, channel_bias, activation, upsample, 0.7 if present[0] else 1.0)


def test_concatenated(algorithm):
    x, weight, _ = make((2, 48, 9, 8), 40, seed=1)
    skip, more, _ = make((2, 21, 9, 8), 40, seed=2)
    weight = torch.cat((weight, more), 1)
    check(x, weight, algorithm=algorithm, skip=skip)
    with fastdiff.use("cpu"):
        torch.testing.assert_close(conv2d((x, skip), weight), conv2d(torch.cat((x, skip), 1), weight))
        three = conv2d((x, skip[:, :10], skip[:, 10:]), weight)  # joined before
        torch.testing.assert_close(three, conv2d((x, skip), weight))
        torch.testing.assert_close(conv2d((skip, x), weight), conv2d(torch.cat((skip, x), 1), weight))


def test_weights_are_read_as_they_are_stored(algorithm):
    x, weight, bias = make((2, 50, 9, 8), 35)
    for stored in (
        weight.contiguous(memory_format=torch.channels_last),
        weight.transpose(0, 1).contiguous().transpose(0, 1),
        weight.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat((weight, weight), 1)[:, 50:],
    ):
        assert stored.stride() != weight.stride()
        check(x, stored, bias, algorithm=algorithm)


def test_views(isa):
    x, weight, bias = make((4, 32, 12, 10), 32)
    check(x[::2, :, 1:-1, ::2], weight, bias)
    check(x[:, 8:24], weight[:, ::2], bias)
    check(
        x.contiguous(),
        weight,
        bias,
        1,
        1,
        torch.randn(4, 32, 12, 10)[..., :].transpose(2, 3).contiguous().transpose(2, 3),
    )
    check(x, weight, torch.randn(64)[::2], 1, 1, None, torch.randn(4, 64)[:, ::2])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_number_of_threads_changes_nothing(algorithm, threads):
    x, weight, bias = make((2, 96, 20, 24), 70)
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, threads):
            torch.set_num_threads(n)
            results.append(torch.ops.fastdiff.conv2d(x, None, weight, bias, 1, 1, None, None, None, 1, 1.0, algorithm))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("tiles", [1, 32, 128, 512, 16384])
@pytest.mark.parametrize(("channels", "out_channels"), [(16, 3), (128, 128), (320, 320), (640, 640), (2560, 1280)])
@pytest.mark.parametrize("algorithm_", ALGORITHMS)
def test_the_plan_divides_the_work(algorithm_, channels, out_channels, tiles):
    """Without running it, for 1 to 64 threads: no part is empty, and the largest is not much larger than the mean."""
    for threads in range(1, 65):
        plan, size = core.conv2d_plan(tiles, channels, out_channels, algorithm_, threads)
        assert size > 0
        if algorithm_ == "winograd-amx":
            rows, panels = -(-plan["tiles"] // 32), -(-plan["columns"] // 32)
            assert 1 <= plan["tiles"] <= tiles
            assert 1 <= plan["columns"] <= out_channels
            assert plan["row_parts"] <= rows
            assert plan["column_parts"] <= panels
            units = 36 * plan["row_parts"] * plan["column_parts"]  # of the products
            unit = -(-rows // plan["row_parts"]) * -(-panels // plan["column_parts"])
            largest, mean = -(-units // threads) * unit, 36 * rows * panels / threads
            assert units < threads or largest <= 1.5 * mean + unit, (threads, plan)
            continue
        panels = -(-out_channels // core.conv2d_panel())
        tile_parts, panel_parts = plan["tile_parts"], plan["panel_parts"]
        assert 1 <= tile_parts <= max(1, tiles)
        assert 1 <= panel_parts <= panels
        assert tile_parts * panel_parts <= threads
        assert plan["shared"] or panel_parts == 1
        assert plan["group"] >= 1
        largest = -(-tiles // tile_parts) * -(-panels // panel_parts)
        assert not plan["shared"] or plan["block"] >= -(-tiles // tile_parts)
        if algorithm_ == "winograd" and tiles > 32:
            assert largest <= 2 * max(1, tiles * panels / threads) + panels, (threads, tiles)


def test_weights_are_packed_once_and_again_when_they_change(isa):
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(1, 64, 8, 8)
    with torch.no_grad(), fastdiff.use("cpu"):
        for _ in range(3):
            torch.testing.assert_close(conv2d(x, layer.weight, layer.bias), layer(x), rtol=1e-4, atol=1e-5)
        assert packed(layer.weight).made == 1
        layer.weight.mul_(2)
        torch.testing.assert_close(conv2d(x, layer.weight, layer.bias), layer(x), rtol=1e-4, atol=1e-5)
        layer.weight.data = torch.randn(64, 64, 3, 3)
        torch.testing.assert_close(conv2d(x, layer.weight, layer.bias), layer(x), rtol=1e-4, atol=1e-4)
        assert packed(layer.weight).made == 3
        with torch.inference_mode():
            weight = layer.weight + 1
            assert faster_in_torch(x, None, weight) is not None
            torch.testing.assert_close(
                conv2d(x, weight, layer.bias),
                nn.functional.conv2d(x, weight, layer.bias, padding=1),
                rtol=1e-4,
                atol=1e-3,
            )


def test_the_choice_is_measured_once(monkeypatch):
    monkeypatch.setenv("FASTDIFF_MEASURE", "1")
    x, weight, _ = make((1, 72, 9, 5), 40)
    with fastdiff.use("cpu"):
        results = [conv2d(x, weight) for _ in range(2)]
    assert torch.equal(*results)
    problem = Problem(1, 72, 40, 9, 5, 1, torch.get_num_threads(), core.isa())
    choice = choices()[problem]
    assert choice.measured
    assert set(choice.seconds) == set(problem.algorithms)
    kept = [choice.algorithm] if MEMORY[choice.algorithm] else []
    assert list(packed(weight).nbytes()) == kept
    assert choose(problem) == (choice.algorithm, False)
    assert f"1x72 to 40x9x5, {problem.threads} threads" in explain()
    assert f"conv2d of 1x72 to 40x9x5, {problem.threads} threads" in str(fastdiff.explain())


def test_what_goes_to_torch():
    x, weight, _ = make((1, 64, 8, 8), 64)
    for x_, w, options, reason in [
        (x, weight, {"stride": 2}, "stride"),
        (x, weight[..., :2, :2], {"padding": 0}, "3x3"),
        (x, weight, {"upsample": 3}, "3 times"),
        (x.double(), weight.double(), {}, "float32"),
    ]:
        assert reason in supports(x_, None, w, **options)
        torch.testing.assert_close(conv2d(x_, w, **options), reference(x_, None, w, **options))
        with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match=reason):
            conv2d(x_, w, **options)
    assert "channels" in faster_in_torch(x[:, :4], None, weight[:, :4])
    assert "gradient" in faster_in_torch(x, None, weight.requires_grad_())


def test_gradients():
    x, weight, bias = make((2, 16, 6, 5), 32)
    tensors = [t.requires_grad_() for t in (x, weight, bias, torch.randn(2, 32, 6, 5), torch.randn(2, 32))]
    x, weight, bias, residual, channel_bias = tensors
    results = []
    for backend in ("cpu", "reference"):
        with fastdiff.use(backend):
            y = conv2d(x, weight, bias, residual=residual, channel_bias=channel_bias, activation="silu")
        results.append(torch.autograd.grad(y.square().sum(), tensors))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda x, w, *rest: reference(x, None, w, rest[0], 1, 1, *rest[1:], "silu"), wide)


def test_registration():
    x, weight, bias = make((1, 16, 6, 5), 32)
    arguments = (x, None, weight, bias, 1, 1, None, torch.randn(1, 32), "silu", 2, 1.0, None)
    torch.library.opcheck(torch.ops.fastdiff.conv2d.default, arguments)
    compiled = torch.compile(lambda x: conv2d(x, weight, bias) + 1, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), fastdiff.use("cpu"):
        torch.testing.assert_close(compiled(x), conv2d(x, weight, bias) + 1)


def test_errors():
    x, weight, bias = make((2, 16, 6, 5), 32)
    for message, arguments, options in [
        ("x must be", (x[0], weight), {}),
        ("weight is", (x, weight[:, :8]), {}),
        ("bias is", (x, weight, bias[:3]), {}),
        ("residual is", (x, weight), {"residual": x}),
        ("channel_bias is", (x, weight), {"channel_bias": bias}),
        ("fewer pixels", (x[:, :, :2], weight), {"padding": 0}),
        ("unknown activation", (x, weight), {"activation": "tanh"}),
        ("got none", ([], weight), {}),
        ("second x", ([x, x[:1]], weight), {}),
    ]:
        with pytest.raises(ValueError, match=message):
            conv2d(*arguments, **options)
    with pytest.raises(TypeError, match="weight"):
        conv2d(x, weight.double())
