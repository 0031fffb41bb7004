"""Optimized models on the device: as exact as the originals in the same type, launched and as graphs, and sampled."""

import copy
import warnings

import pytest
import torch
from conftest import assert_no_worse

import fastdiff
from fastdiff.compiler.report import reports_of
from fastdiff.models.bundled import to_pictures
from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.runtime import graphs

NAMES = ["emoji-unet-32", "emoji-dit-64", "emoji-ldm-64"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def small_unet():
    config = UNetConfig((32, 64), 1, (2,), head_channels=32, groups=8, embedding_channels=64)
    return UNet(config), (torch.randn(2, 3, 16, 16), torch.tensor([10.0, 600.0]))


def small_dit():
    config = DiTConfig(input_size=8, hidden_size=64, depth=2, num_heads=2, num_classes=4)
    return DiT(config), (torch.randn(2, 4, 8, 8), torch.tensor([10.0, 600.0]), torch.tensor([1, 2]))


def placed(make, device, dtype):
    """Model and inputs, with weights that leave nothing at zero."""
    torch.manual_seed(0)
    model, inputs = make()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    inputs = tuple(x.to(device, dtype if x.is_floating_point() and x.ndim > 1 else None) for x in inputs)
    return model.to(device, dtype).eval().requires_grad_(False), inputs


def condition(model, count):
    chosen = model.info.classes[0] if model.info.classes else "red apple"
    return {"cond": model.info.condition(chosen, count), "uncond": model.info.condition(None, count)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [small_unet, small_dit])
def test_optimized_models_are_as_exact_as_the_original(make, dtype, device):
    model, inputs = placed(make, device, dtype)
    found = fastdiff.verify(model, fastdiff.optimize(model), inputs)
    assert found, str(found)
    assert found.against == "float64"
    assert found.nodes > 20


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_bundled_models(name, dtype, device):
    model = fastdiff.load(name, device=device, dtype=dtype)
    x = torch.randn(2, *model.info.shape).to(device, dtype)
    inputs = ((x, torch.tensor([10.0, 600.0], device=device)), condition(model, 2)["cond"])
    found = fastdiff.verify(model, fastdiff.optimize(model), inputs)
    assert found, str(found)


@pytest.mark.parametrize("make", [small_unet, small_dit])
def test_calls_give_the_same_launched_and_replayed(make, device, monkeypatch):
    model, inputs = placed(make, device, torch.float16)
    fastdiff.optimize(model)
    with torch.no_grad():
        calls = [model(*inputs) for _ in range(4)]  # launched, captured, replayed
        again = [x.clone() for x in inputs]
        again[0].mul_(-0.5)
        other = model(*again)
        monkeypatch.setenv("FASTDIFF_GRAPH", "0")
        launched, launched_other = model(*inputs), model(*again)
    close = dict(rtol=1e-2, atol=1e-2)  # a library may choose another kernel inside a capture
    for call in calls:  # of which none was overwritten by a later one: the results are the caller's
        torch.testing.assert_close(call, launched, **close)
    torch.testing.assert_close(other, launched_other, **close)
    assert not torch.allclose(other, launched, **close)


@torch.no_grad()
def test_weights_that_change_are_seen(device):
    model, inputs = placed(small_unet, device, torch.float32)
    fastdiff.optimize(model)
    for step in range(4):
        for _ in range(3):
            found, expected = model(*inputs), model._call_impl(*inputs)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        parameter = next(model.parameters())
        if step % 2:
            parameter.mul_(1.5)  # in place
        else:
            parent = next(part for part in model.modules() if part._parameters)
            key = next(iter(parent._parameters))
            parent._parameters[key] = torch.nn.Parameter(1.5 * parent._parameters[key], requires_grad=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_pictures_in_half_precision_are_those_of_float32(name, dtype, device):
    exact, model = (
        fastdiff.load(name, device=device),
        fastdiff.optimize(fastdiff.load(name, device=device, dtype=dtype)),
    )
    options = dict(steps=4, guidance=2.0, seed=0)
    noise = torch.randn(2, *model.info.shape, generator=torch.Generator().manual_seed(0)).to(device)
    with fastdiff.use("reference"):
        expected = to_pictures(exact, fastdiff.sample(exact, noise, **condition(exact, 2), **options))
    for _ in range(3):
        found = fastdiff.sample(model, noise.to(dtype), **condition(model, 2), **options)
        shown = to_pictures(model, found)
        assert shown.dtype is dtype
        assert shown.device == expected.device
        bound = 4 * torch.finfo(dtype).eps if dtype == torch.float16 else 1e-3
        assert float((shown.float() - expected).square().mean().sqrt()) < bound


@pytest.mark.only_gpu
def test_a_call_of_an_optimized_model_is_one_launch(device):
    """Not hundreds, which cost the CPU more than the GPU needs for them."""
    model, inputs = placed(small_unet, device, torch.float16)
    fastdiff.optimize(model)
    with torch.no_grad():
        for _ in range(4):
            model(*inputs)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            model(*inputs)
            torch.cuda.synchronize()
    names = {event.key: event.count for event in profiled.key_averages()}
    launched = sum(count for name, count in names.items() if name.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    assert names.get("cudaGraphLaunch", 0) == 1, names
    assert launched < 16, names  # copies of inputs and results


def test_the_original_is_left_as_it_was(device):
    model, inputs = placed(small_dit, device, torch.float32)
    untouched = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdiff.optimize(model)
        with torch.no_grad():
            for _ in range(3):
                found = model(*inputs)
        fastdiff.restore(model)
        assert reports_of(list(model.parameters())) == []
        with torch.no_grad():
            assert torch.equal(model(*inputs), untouched(*inputs))
    assert_no_worse(found, untouched(*inputs), untouched.double()(inputs[0].double(), *inputs[1:]), floor=1e-4)
    assert graphs.unavailable(torch.device(device)) is None or device == "cpu"
