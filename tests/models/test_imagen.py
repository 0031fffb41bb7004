"""Imagen's U-Nets: reuse of features, without texts, optimized, and configurations that are refused."""

from dataclasses import replace

import pytest
import torch
from conftest import relative_error
from families_imagen import BASE, FIELDS, FLAGS, IMAGEN
from original_names import state_dict
from test_families import make

import fastdiff
from fastdiff.models.checkpoints.layout import LAYOUTS
from fastdiff.models.imagen import ImagenConfig, ImagenUNet, of_log_snr


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


@torch.no_grad()
def test_sampled_with_times_that_are_log_snrs():
    """The network gets log(alpha^2 / sigma^2) of each time; guidance is between a text and none."""
    model, arguments = make("imagen-base")
    times = []
    hook = model.register_forward_pre_hook(lambda module, inputs: times.append(inputs[1][0].item()))
    schedule = fastdiff.schedules.VPDiscrete.cosine()
    keep = torch.ones(3, dtype=torch.bool)
    cond = {"text": arguments["text"], "mask": arguments["mask"], "keep_text": keep}
    samples = fastdiff.sample(model, (3, 3, 8, 8), schedule=schedule, prediction=of_log_snr(), solver="ddim", steps=4,
                              grid="uniform", seed=0, threshold=1.0, guidance=3.0, cond=cond,
                              uncond={**cond, "keep_text": ~keep})  # fmt: skip
    hook.remove()
    assert samples.shape == (3, 3, 8, 8)
    points = [schedule.point(t) for t in fastdiff.grids.make_grid("uniform", schedule, 4)[:-1]]
    assert times == pytest.approx([2 * point.lam for point in points], rel=1e-5)
    assert of_log_snr() is of_log_snr()


def test_a_file_with_all_networks_of_a_cascade():
    layout = next(known for known in LAYOUTS if known.name == "imagen")
    configs = [FIELDS, {**FIELDS, **FLAGS}]
    state = {}
    for index, config in enumerate(configs):
        state |= state_dict(layout, config, prefix=f"unets.{index}.")
    assert not fastdiff.models.load(state, config=FIELDS).config.lowres_cond
    second = fastdiff.models.load(state, config=configs[1], part="unets.1")
    assert second.config.lowres_cond
    with pytest.raises(fastdiff.WeightsError, match=r"has no part unets\.2, only unets\.0, unets\.1"):
        fastdiff.models.load(state, part="unets.2")
