"""Networks of diffusers at three sizes and two batches: as exact as the original, and accelerated at each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import randn

import fastdiff
from fastdiff.compiler.report import reports_of

diffusers = pytest.importorskip("diffusers", reason="the networks are diffusers'")

from integrations.networks import NETWORKS, UNET  # noqa: E402
from integrations.small_parts import ip_adapter  # noqa: E402

IN_PARTS = {"Lumina2": 4}  # the lengths of its texts are read from a mask


def random_network(build):
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5 if p.ndim > 1 else p + 0.2 * torch.randn_like(p))
    return model


def tensors(output):
    return [x for x in torch.utils._pytree.tree_leaves(output.to_tuple()) if isinstance(x, torch.Tensor)]


def widened(x):
    if isinstance(x, dict):
        return {key: widened(each) for key, each in x.items()}
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


SOON = ("Kandinsky 2", "SD3", "Wan")  # a U-Net, a transformer of pictures, one of videos; the others take long


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SOON else pytest.mark.long) for n in NETWORKS if n != "AutoencoderTiny"]
)
@pytest.mark.filterwarnings("ignore:fastdiff. the model was captured in 4 parts")
def test_other_sizes(name):
    build, arguments, size = NETWORKS[name]
    model = random_network(build)
    wide = copy.deepcopy(model).double()
    fastdiff.optimize(model)
    for batch, height, width in ((2, size, size), (3, size + 8, size), (2, 2 * size, size + 8)):
        given = arguments(batch, height, width)
        oracle, expected = tensors(wide(**widened(given))), tensors(model._call_impl(**given))
        for ours, theirs, exact in zip(tensors(model(**given)), expected, oracle, strict=True):
            assert ours.dtype is theirs.dtype
            assert ours.stride() == theirs.stride()
            floor = 1e-5 * float(exact.abs().max())
            assert float((ours - exact).abs().max()) <= 3 * float((theirs - exact).abs().max()) + floor
    reports = reports_of(list(model.parameters()))
    assert len(reports) <= IN_PARTS.get(name, 0) + 3
    assert [report.fallback for report in reports] == [None] * len(reports)
    layers = ("attention", "conv2d", "linear", "group_norm_silu")
    matches = [sum(notes.matches for notes in report.passes if notes.name in layers) for report in reports]
    assert min(matches) > 0 or name in IN_PARTS
    assert max(matches) > 0


@torch.no_grad()
def test_skipped_layers_of_sd3():
    build, arguments, _ = NETWORKS["SD3"]
    model, given = random_network(build), arguments(1, 16, 16)
    fastdiff.optimize(model)
    plain = model._call_impl(**given).sample
    for skip in (None, [1], [0], None, [1], [0, 1]):
        found, expected = model(**given, skip_layers=skip).sample, model._call_impl(**given, skip_layers=skip).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert skip is None or not torch.allclose(found, plain, rtol=1e-2, atol=1e-3)


@torch.no_grad()
def test_an_ip_adapter_after_the_first_call():
    blocks = dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )
    model = random_network(lambda: diffusers.UNet2DConditionModel(**UNET, **blocks))
    fastdiff.optimize(model)
    x, t, text = randn(1, 4, 16, 16), torch.tensor(300), randn(1, 7, 32)
    torch.testing.assert_close(model(x, t, text).sample, model._call_impl(x, t, text).sample, rtol=1e-4, atol=1e-4)
    model._load_ip_adapter_weights([ip_adapter(model)])
    for batch, size in ((1, 16), (2, 24), (2, 16)):
        x, text, image = randn(batch, 4, size, size), randn(batch, 7, 32), {"image_embeds": [randn(batch, 1, 24)]}
        found = model(x, t, text, added_cond_kwargs=image).sample
        expected = model._call_impl(x, t, text, added_cond_kwargs=image).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(reports_of(list(model.parameters()))) <= 3


@torch.no_grad()
def test_the_tiny_autoencoder():
    """It casts to float32 itself, and rounds to bytes in its middle, where a value may fall on either side."""
    build, arguments, size = NETWORKS["AutoencoderTiny"]
    model = fastdiff.optimize(random_network(build))
    for batch, height, width in ((2, size, size), (3, size + 8, size), (2, 2 * size, size + 8)):
        given = arguments(batch, height, width)
        found, expected = model(**given).sample, model._call_impl(**given).sample
        assert float((found - expected).abs().mean()) <= 1e-3 * float(expected.abs().mean())
    reports = reports_of(list(model.parameters()))
    assert [report.fallback for report in reports] == [None, None]
    assert all({notes.name: notes.matches for notes in report.passes}["conv2d"] > 10 for report in reports)
