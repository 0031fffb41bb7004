"""Networks for videos: who sees which frames, under `optimize`, through every solver."""

import pytest
import torch
from conftest import relative_error

import fastdiff
from fastdiff.models.parts import positions, temporal
from fastdiff.models.video_unet import Unet3D, Unet3DConfig

SHAPE = (2, 3, 4, 8, 8)


def unet(**changes):
    torch.manual_seed(0)
    return Unet3D(Unet3DConfig(dim=16, dim_mults=(1, 2), attn_heads=2, **changes)).eval().requires_grad_(False)


def inputs():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 977.0])


def test_frames_as_samples_and_as_tokens_and_back():
    x = torch.randn(SHAPE)
    h = temporal.to_frames(x)
    assert torch.equal(h[5], x[1, :, 1])
    assert torch.equal(temporal.to_video(h, 4), x)
    tokens = temporal.to_sequences(h, 4)
    assert torch.equal(tokens[64 + 8 * 2 + 3], x[1, :, :, 2, 3].T)
    assert torch.equal(temporal.from_sequences(tokens, 8, 8), h)


def test_rotations_make_scores_depend_on_the_distance_alone():
    q, k = torch.randn(1, 1, 1, 12, dtype=torch.float64), torch.randn(1, 1, 1, 12, dtype=torch.float64)
    angles = torch.arange(6.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.2], dtype=torch.float64)
    scores = positions.rotate(q.expand(1, 1, 6, 12), angles) @ positions.rotate(k.expand(1, 1, 6, 12), angles).mT
    for distance in range(-5, 6):
        diagonal = scores[0, 0].diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    torch.testing.assert_close(scores[0, 0, 0, 0], (q * k).sum())


def test_distances_fall_into_the_buckets_of_t5():
    bias = temporal.RelativePositionBias(1)
    bias.table.weight.data = torch.arange(32.0)[:, None]
    buckets = bias(40)[0, 0]
    assert buckets[0, :12].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24, 24, 25, 25]  # later frames
    assert buckets[:12, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9]
    assert buckets[0, -1] == 31
    assert buckets[-1, 0] == 15


def test_frames_that_see_themselves_alone_are_pictures():
    """Without the first attention, which is never masked."""
    model, (x, t) = unet(), inputs()
    model.stem_attention.attention.proj.weight.zero_()
    video = model(x, t, focus_present_mask=torch.tensor([True, False]))
    pictures = torch.cat([model(x[:1, :, i : i + 1], t[:1]) for i in range(4)], dim=2)
    assert relative_error(video[:1], pictures) <= 1e-5
    whole = model(x, t)
    assert torch.equal(video[1:], whole[1:])
    assert relative_error(video[:1], whole[:1]) > 1e-3
    torch.testing.assert_close(model(x, t, prob_focus_present=1.0)[:1], video[:1])


def test_guidance():
    model, (x, t) = unet(cond_dim=6), inputs()
    cond = torch.randn(2, 6)
    out, null = model(x, t, cond), model(x, t, cond, null_cond_prob=1.0)
    torch.testing.assert_close(model(x, t, model.unconditional(2)), null)
    torch.testing.assert_close(model.forward_with_cond_scale(x, t, cond, cond_scale=3.0), null + 3 * (out - null))
    with pytest.raises(ValueError, match=r"cond must be \(2, 6\), got None"):
        model(x, t)
    with pytest.raises(ValueError, match="takes no condition"):
        unet().unconditional(2)
    model.null_cond.requires_grad_(True)
    model(x, t, model.unconditional(2)).square().mean().backward()
    assert model.null_cond.grad.abs().sum() > 0


@pytest.mark.parametrize("name", fastdiff.solvers.SOLVERS)
def test_states_of_five_axes_go_through_every_solver(name):
    """As if frames and pixels were in one axis."""

    def network(x, t):
        return 0.3 * x.flatten(1).cumsum(1).tanh().reshape(x.shape)

    options = dict(schedule=fastdiff.schedules.VPDiscrete.scaled_linear(), prediction="eps", solver=name, steps=4)
    x = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    video = fastdiff.sample(network, x, seed=5, **options)
    flat = fastdiff.sample(network, x.reshape(2, 48), seed=5, **options)
    assert video.shape == x.shape
    torch.testing.assert_close(video.reshape(2, 48), flat, rtol=1e-5, atol=1e-5)


def test_optimize_gives_the_same():
    model, (x, t) = unet(cond_dim=6), inputs()
    cond, focus = torch.randn(2, 6), torch.tensor([True, False])
    expected = model(x, t, cond, focus_present_mask=focus)
    fastdiff.optimize(model)
    assert relative_error(model(x, t, cond, focus_present_mask=focus), expected) <= 2e-5


def test_a_video_is_sampled_and_its_deep_levels_are_cached():
    model = unet(cond_dim=6)
    cond, uncond = {"cond": torch.randn(2, 6)}, {"cond": model.unconditional(2)}
    schedule = fastdiff.schedules.VPDiscrete.scaled_linear()
    options = dict(schedule=schedule, prediction="eps", solver="ddim", steps=3, guidance=2.0, seed=0,
                   cond=cond, uncond=uncond)  # fmt: skip
    video = fastdiff.sample(model, SHAPE, **options)
    assert video.shape == SHAPE
    assert video.isfinite().all()
    cached = fastdiff.caching.Cached(model, "deep:2")
    near = fastdiff.sample(cached, SHAPE, **options)
    assert (cached.cache.full, cached.cache.reused) == (2, 1)
    assert 0 < relative_error(near, video) < 0.5
