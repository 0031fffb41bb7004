"""SiT and U-ViT: under `optimize`, under caching, sampled as they were trained."""

import pytest
import torch
from conftest import relative_error

import fastdiff
from fastdiff.models.dit import DiTConfig
from fastdiff.models.sit import SiT
from fastdiff.models.uvit import UViT, UViTConfig

SMALL = {"img_size": 16, "patch_size": 2, "in_chans": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}


def filled(model):
    """No branch at zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def uvit(**changes):
    return filled(UViT(UViTConfig(**{**SMALL, **changes})))


def sit(**changes):
    config = {"input_size": 16, "hidden_size": 64, "depth": 2, "num_heads": 4, "num_classes": 5}
    return filled(SiT(DiTConfig(**{**config, **changes})))


X, T = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.9])


@pytest.mark.parametrize(
    ("build", "condition"),
    [
        (lambda: uvit(num_classes=5), {"y": torch.tensor([1, 4])}),
        (lambda: uvit(clip_dim=8, num_clip_token=3), {"context": torch.randn(2, 3, 8)}),
        (lambda: uvit(qkv_bias=True, qk_scale=0.3, skip=False, mlp_time_embed=True), {}),
        (sit, {"y": torch.tensor([1, 4])}),
    ],
)
def test_optimize_gives_the_same(build, condition):
    model = build()
    expected = model(X, T, **condition)
    fastdiff.optimize(model)
    assert relative_error(model(X, T, **condition), expected) <= 2e-5


def test_the_output_of_sit_is_the_first_half_of_dits():
    model = sit()
    y = torch.tensor([1, 4])
    whole = super(SiT, model).forward(X, T, y)
    assert whole.shape[1] == 8
    assert torch.equal(model(X, T, y), whole[:, :4])


def test_sit_is_sampled_from_noise_at_0_to_data_at_1():
    """A network that knows the one data point there is: the velocity is that point less the noise."""
    point = torch.full((1, 4, 16, 16), 0.7)

    def velocity(x, t):
        """x = t point + (1 - t) noise, as SiT has it."""
        t = t.reshape(-1, 1, 1, 1)
        return (point - x) / (1 - t)

    out = fastdiff.sample(lambda x, t: -velocity(x, 1 - t), (2, 4, 16, 16), schedule="rectified-flow",
                          prediction="flow", solver="ddim", steps=8, seed=0)  # fmt: skip
    assert (out - point).abs().max() <= 5e-3  # the schedule ends at t = 1e-3


@pytest.mark.parametrize(("build", "kind"), [(uvit, "deep"), (sit, "blocks")])
def test_caching(build, kind):
    """A full call is the model's; the one after it reuses, and so is near."""
    model = build()
    condition = {"y": torch.tensor([1, 4])} if isinstance(model, SiT) else {}
    cached = fastdiff.caching.Cached(model, f"{kind}:2")
    x = [X, X + 0.3 * X.flip(0), X.flip(1)]
    found = [cached(each, T, **condition) for each in x]
    expected = [model(each, T, **condition) for each in x]
    assert (cached.cache.full, cached.cache.reused) == (2, 1)
    assert relative_error(found[0], expected[0]) <= 1e-6
    assert relative_error(found[2], expected[2]) <= 1e-6
    assert 1e-4 < relative_error(found[1], expected[1]) < relative_error(expected[0], expected[1])
