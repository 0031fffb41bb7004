"""Imagen's U-Nets: reuse of features, without texts, optimized, and configurations that are refused."""

from dataclasses import replace

import pytest
import torch
from conftest import relative_error
from families_imagen import BASE, FIELDS, IMAGEN
from test_families import make

import fastdiff
from fastdiff.models.imagen import ImagenConfig, ImagenUNet


class Kept:
    """Takes what is deeper than `depth` stages from the first call."""

    def __init__(self, depth):
        self.depth, self.value, self.calls = depth, None, 0

    def compute(self, outer, deep):
        self.calls += 1
        self.value = deep() if self.value is None else self.value
        return self.value


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_reuse(depth):
    """The first call is whole; later ones differ, but not in what they keep; with the same input they are the same."""
    model, arguments = make("imagen-base")
    reuse = Kept(depth)
    expected = model(**arguments)
    torch.testing.assert_close(model(**arguments, reuse=reuse), expected)
    torch.testing.assert_close(model(**arguments, reuse=reuse), expected)
    other = {**arguments, "x": arguments["x"].flip(0)}
    assert relative_error(model(**other, reuse=reuse), model(**other)) > 1e-3
    assert reuse.calls == 3


def test_an_end_that_sees_every_level_has_no_reuse():
    model, arguments = make("imagen-efficient")
    with pytest.raises(ValueError, match="without combine_upsample_fmaps"):
        model(**arguments, reuse=Kept(1))


@torch.no_grad()
@pytest.mark.parametrize("name", IMAGEN)
def test_optimized(name):
    model, arguments = make(name)
    expected = model(**arguments)
    assert relative_error(fastdiff.optimize(model)(**arguments), expected) <= 2e-5


@torch.no_grad()
def test_texts():
    """None given, none kept, padding, and more tokens than max_text_len."""
    model, arguments = make("imagen-base")
    x, t, text = arguments["x"], arguments["t"], arguments["text"]
    whole, nothing = model(x, t, text), torch.zeros(3, dtype=torch.bool)
    assert relative_error(model(x, t), whole) > 1e-3
    assert torch.equal(model(x, t, text, keep_text=nothing), model(x, t, text.flip(0), keep_text=nothing))
    more = torch.cat([text, text], dim=1)
    assert torch.equal(model(x, t, more), model(x, t, more[:, :6]))
    ends = torch.arange(5) < torch.tensor([[2], [3], [5]])
    changed = torch.where(ends[..., None], text, 7.0)
    assert torch.equal(model(x, t, text, ends), model(x, t, changed, ends))
    alone = ImagenUNet(replace(BASE, cond_on_text=False)).eval()
    assert alone(x, t).shape == x.shape
    with pytest.raises(ValueError, match="has no cond_on_text"):
        alone(x, t, text)


@torch.no_grad()
def test_other_sizes():
    model, arguments = make("imagen-efficient")
    x, low_res = torch.randn(3, 3, 12, 8), torch.randn(3, 3, 12, 8)
    assert model(**{**arguments, "x": x, "low_res": low_res, "self_cond": None}).shape == x.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_embed_downsample": True}, "the original fails with it"),
        ({"attn_heads": 1}, "attn_heads must be at least 2, got 1"),
        ({"resize_mode": "linears"}, "unknown resize_mode 'linears'; did you mean 'bilinear"),
        ({"max_text_len": 600}, "max_text_len must be at most 512"),
        ({"num_resnet_blocks": (1, 2, 3)}, "num_resnet_blocks must have 2 entries"),
        ({"learned_sinu_pos_emb_dim": 5}, "must be even, got 5"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ImagenUNet(ImagenConfig(**{**FIELDS, **changes}))
