"""conv2d against float64: every instruction set and algorithm, sizes that fill no tile, epilogues, changed weights."""

import itertools
import math

import pytest
import torch
from conftest import assert_no_worse, floor
from operators import check_gradients, check_threads, run_conv2d, slower, unsupported
from torch import nn

import fastdiff
from fastdiff.bench.cases import wide
from fastdiff.bench.cases.conv2d import make
from fastdiff.ops import conv2d
from fastdiff.ops.conv2d_algorithms import ALGORITHMS, MEMORY, Problem, choices, choose, explain
from fastdiff.ops.conv2d_weights import packed
from fastdiff.runtime.native import core

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


def check(algorithm=None, **inputs):
    """At most twice torch's error, as x is stored; the floor is a rounding in each halving of the sums."""
    assert unsupported(conv2d, **inputs) is None
    ours, oracle = run_conv2d(algorithm, **inputs), conv2d.plain(**wide(inputs))
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)
    halvings = math.log2(9 * inputs["weight"].shape[1])
    assert_no_worse(ours, conv2d.plain(**inputs), oracle, floor=floor(oracle, torch.float32, more=halvings))


@pytest.mark.skipif("amx" not in core.supported_isas(), reason="no matrix units: winograd-amx is left out of all tests")
def test_the_algorithm_of_the_matrix_units():
    check("winograd-amx", **make((2, 64, 16, 16), 64))


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("shape", "out_channels"), CASES)
def test_shapes(algorithm, shape, out_channels, padding):
    if min(shape[2:]) + 2 * padding < 3:
        pytest.skip("fewer pixels than the kernel has")
    check(algorithm, **make(shape, out_channels) | {"padding": padding})


@pytest.mark.parametrize("like", ["random", "smooth", "silu", "outliers"])
@pytest.mark.parametrize("channels", [128, 640])
def test_accuracy(algorithm, channels, like):
    """Relative to the RMS of the result, at most twice torch's error in channels-last storage, with nothing added."""
    inputs = make((1, channels, 16, 16), 64, like=like) | {"bias": None}
    assert_no_worse(run_conv2d(algorithm, **inputs), conv2d.plain(**inputs), conv2d.plain(**wide(inputs)))


@pytest.mark.parametrize("channels", [16, 69, 130])
def test_weights_on_the_fly_give_the_same_bits(isa, channels):
    """Their sums are cut at the same channels. Of 64 and 16, not 32 and 48, two draws in 60 broke the bound."""
    for seed in range(20):
        inputs = make((2, channels, 9, 8), 40, seed=seed)
        check("winograd-on-the-fly", **inputs)
        assert torch.equal(run_conv2d("winograd-on-the-fly", **inputs), run_conv2d("winograd", **inputs))


@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=4)))
@pytest.mark.parametrize("upsample", [1, 2])
def test_epilogue(isa, present, upsample):
    inputs = make((2, 20, 5, 7), 35, upsample=upsample, residual=True)
    inputs |= dict(channel_bias=torch.randn(2, 35), activation="silu")
    names = ("bias", "residual", "channel_bias", "activation")
    left_out = [name for name, there in zip(names, present) if not there]
    check(**inputs | dict.fromkeys(left_out), scale=0.7 if present[0] else 1.0)


def test_concatenated(algorithm):
    x, weight, *_ = make((2, 48, 9, 8), 40, seed=1).values()
    skip, more, *_ = make((2, 21, 9, 8), 40, seed=2).values()
    weight = torch.cat((weight, more), 1)
    check(algorithm, x=[x, skip], weight=weight)
    check(x=[x, skip[:, :10], skip[:, 10:]], weight=weight)  # joined before
    check(x=[skip, x], weight=weight)


def test_weights_are_read_as_they_are_stored(algorithm):
    x, weight, bias, *_ = make((2, 50, 9, 8), 35).values()
    for stored in (
        weight.contiguous(memory_format=torch.channels_last),
        weight.transpose(0, 1).contiguous().transpose(0, 1),
        weight.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat((weight, weight), 1)[:, 50:],
    ):
        assert stored.stride() != weight.stride()
        check(algorithm, x=x, weight=stored, bias=bias)


def test_views(isa):
    x, weight, bias, *_ = make((4, 32, 12, 10), 32).values()
    check(x=x[::2, :, 1:-1, ::2], weight=weight, bias=bias)
    check(x=x[:, 8:24], weight=weight[:, ::2], bias=bias)
    check(x=x.contiguous(), weight=weight, bias=bias, residual=torch.randn(4, 32, 10, 12).transpose(2, 3))
    check(x=x, weight=weight, bias=torch.randn(64)[::2], channel_bias=torch.randn(4, 64)[:, ::2])


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_the_number_of_threads_changes_nothing(algorithm, threads):
    inputs = make((2, 96, 20, 24), 70)
    check_threads(lambda: run_conv2d(algorithm, **inputs), (1, threads))


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
    """The result is that of a copy of the weight, for which nothing was kept, to the bit."""
    layer, x = nn.Conv2d(64, 64, 3, padding=1), make((1, 64, 8, 8), 64)["x"]

    def run(weight):
        with fastdiff.use("cpu"):
            return conv2d(x, weight, layer.bias)

    with torch.no_grad():
        first = run(layer.weight)
        kept = packed(layer.weight)
        for _ in range(2):
            assert torch.equal(run(layer.weight), first)
        assert packed(layer.weight) is kept
        layer.weight.mul_(2)
        second = run(layer.weight)
        assert torch.equal(second, run(layer.weight.clone()))
        layer.weight.data = torch.randn(64, 64, 3, 3)
        third = run(layer.weight)
        assert torch.equal(third, run(layer.weight.clone()))
        layer.weight.data[5] = 0
        assert torch.equal(run(layer.weight), run(layer.weight.clone()))
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)
        with torch.inference_mode():
            weight = layer.weight + 1
            assert slower(conv2d, x, weight) is not None
            fourth = run(weight)
        assert torch.equal(fourth, run(layer.weight + 1))


def test_the_choice_is_measured_once(monkeypatch):
    monkeypatch.setenv("FASTDIFF_MEASURE", "1")
    x, weight, *_ = make((1, 72, 9, 5), 40).values()
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
    assert f"1x72 to 40x9x5, {problem.threads} thread" in explain()
    assert f"conv2d of 1x72 to 40x9x5, {problem.threads} thread" in str(fastdiff.explain())


def test_what_goes_to_torch():
    x, weight, *_ = make((1, 64, 8, 8), 64).values()
    for x_, w, options, reason in [
        (x, weight, {"stride": 2}, "stride"),
        (x, weight[..., :2, :2], {"padding": 0}, "3x3"),
        (x, weight, {"upsample": 3}, "3 times"),
        (x.double(), weight.double(), {}, "float32"),
    ]:
        assert reason in unsupported(conv2d, x_, w, **options)
        assert torch.equal(conv2d(x_, w, **options), conv2d.plain(x_, w, **options))
        with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match=reason):
            conv2d(x_, w, **options)
    assert "channels" in slower(conv2d, x[:, :4], weight[:, :4])
    assert "gradient" in slower(conv2d, x, weight.requires_grad_(), activation="silu")


def test_gradients():
    inputs = make((2, 16, 6, 5), 32, residual=True) | dict(channel_bias=torch.randn(2, 32), activation="silu")
    check_gradients(conv2d, inputs, torch.randn(2, 32, 6, 5), terms=9 * 32)
    wide_ones = {name: t.requires_grad_() for name, t in wide(inputs).items() if isinstance(t, torch.Tensor)}
    assert torch.autograd.gradcheck(
        lambda *t: conv2d.plain(**inputs | dict(zip(wide_ones, t))), tuple(wide_ones.values())
    )


def test_registration():
    x, weight, bias, *_ = make((1, 16, 6, 5), 32).values()
    arguments = (x, None, weight, bias, 1, 1, None, torch.randn(1, 32), "silu", 2, 1.0, None)
    torch.library.opcheck(torch.ops.fastdiff.conv2d.default, arguments)
    compiled = torch.compile(lambda x: conv2d(x, weight, bias) + 1, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), fastdiff.use("cpu"):
        assert torch.equal(compiled(x), conv2d(x, weight, bias) + 1)


def test_errors():
    x, weight, bias, *_ = make((2, 16, 6, 5), 32).values()
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
