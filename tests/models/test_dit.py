"""DiT: the four blocks, sizes, guidance, what its inputs must be; against diffusers."""

import dataclasses

import pytest
import torch
from conftest import relative_error

import fastdiff
from fastdiff.models.dit import BLOCKS, SIZES, DiT, DiTConfig, sincos_positions

SMALL = DiTConfig(input_size=8, hidden_size=48, depth=3, num_heads=4, num_classes=5)


def small(**changes):
    torch.manual_seed(0)
    model = DiT(dataclasses.replace(SMALL, **changes)).eval()
    for parameter in model.parameters():  # the zero-initialised layers would hide the others
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def inputs(batch=3, size=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, size, size, generator=generator)
    return x, torch.linspace(0.5, 999.0, batch), torch.arange(batch) % 6


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("changes", [{}, {"patch_size": 4, "learn_sigma": False}, {"mlp_ratio": 2.5, "num_heads": 3}])
def test_shapes(block, changes):
    model = small(block=block, **changes)
    x, t, y = inputs()
    assert model(x, t, y).shape == (3, 4 if changes.get("learn_sigma") is False else 8, 8, 8)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_has_a_gradient(block):
    model = small(block=block)
    model(*inputs(6)).square().mean().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("block", BLOCKS)
def test_backends_agree(block):
    """The C++ kernels against plain PyTorch, both against float64."""
    model, (x, t, y) = small(block=block), inputs()
    with torch.no_grad():
        with fastdiff.use("cpu"):
            ours = model(x, t, y)
        with fastdiff.use("reference"):
            theirs = model(x, t, y)
            oracle = model.double()(x.double(), t.double(), y)
    # the embedding of the time is the largest error of both: float32's eps at 999 radians
    assert (ours - oracle).abs().max() <= 2 * (theirs - oracle).abs().max() + 1e-6 * oracle.abs().max()


@pytest.mark.parametrize("block", BLOCKS)
def test_samples_of_a_batch_do_not_mix(block):
    model, (x, t, y) = small(block=block), inputs()
    together = model(x, t, y)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_time_class_and_place_matter(block):
    model, (x, t, y) = small(block=block), inputs()
    out = model(x, t, y)
    assert not torch.allclose(out, model(x, t + 1, y), atol=1e-4)
    assert not torch.allclose(out, model(x, t, (y + 1) % 6), atol=1e-4)
    swapped = x.roll(2, dims=-1)  # by a patch: without positions the output would be rolled as well
    assert not torch.allclose(out.roll(2, dims=-1), model(swapped, t, y), atol=1e-4)


def test_new_networks_begin_as_the_identity():
    torch.manual_seed(0)
    model, (x, t, y) = DiT(SMALL), inputs()
    assert not model(x, t, y).any()
    tokens = torch.randn(3, 16, 48)
    torch.testing.assert_close(model.blocks[0](tokens, torch.randn(3, 1, 48)), tokens)


def test_positions_are_sines_and_cosines_of_column_then_row():
    table = sincos_positions(8, 3).double()
    assert table.shape == (9, 8)
    for index in range(9):
        row, column = divmod(index, 3)
        expected = [f(place * 10_000.0 ** (-k / 2)) for place in (column, row) for f in (torch.sin, torch.cos)
                    for k, place in ((0, torch.tensor(float(place))), (1, torch.tensor(float(place))))]  # fmt: skip
        torch.testing.assert_close(table[index], torch.stack(expected).double(), atol=1e-7, rtol=0)


def test_guidance_of_some_channels():
    model, (x, t, y) = small(), inputs(4)
    x = torch.cat([x[:2], x[:2]])
    t, y = t[[0, 1, 0, 1]], torch.tensor([1, 2, 5, 5])
    plain = model(x, t, y)
    for channels in (3, 4):
        out = model.forward_with_cfg(x, t, y, 2.5, channels=channels)
        guided = plain[2:, :channels] + 2.5 * (plain[:2, :channels] - plain[2:, :channels])
        torch.testing.assert_close(out[:, :channels], torch.cat([guided, guided]))
        torch.testing.assert_close(out[:, channels:], plain[:, channels:])
    with pytest.raises(ValueError, match="even number of samples"):
        model.forward_with_cfg(x[:3], t[:3], y[:3], 2.5)


def test_training_drops_classes():
    model = small(class_dropout_prob=0.5).train()
    x, t, _ = inputs(64)
    x, t = x[:1].expand(64, -1, -1, -1), t[:1].expand(64)
    with torch.no_grad():
        out = model(x, t, torch.zeros(64, dtype=torch.int64))
        given, none = model.eval()(x[:2], t[:2], torch.tensor([0, 5]))
    dropped = (out - none).flatten(1).abs().amax(1) < 1e-4
    kept = (out - given).flatten(1).abs().amax(1) < 1e-4
    assert (dropped ^ kept).all()
    assert 16 <= dropped.sum() <= 48  # of 64, at 1/2: 4 standard deviations


def test_times_keep_their_precision_in_half_precision():
    """999 and 1000 are one number in bfloat16."""
    model, (x, t, y) = small().to(torch.bfloat16), inputs()
    x = x.to(torch.bfloat16)
    assert not torch.equal(model(x, torch.full_like(t, 997.0), y), model(x, torch.full_like(t, 999.0), y))


def test_sampling_from_one():
    """Through fastdiff.sample, with the variance that it learned beside the noise."""
    y = torch.tensor([1, 2])
    x = fastdiff.sample(
        small(), (2, 4, 8, 8), schedule=fastdiff.schedules.VPDiscrete.linear(),
        prediction="eps+variance", steps=3, seed=0, guidance=2.0, cond={"y": y}, uncond={"y": torch.full((2,), 5)},
    )  # fmt: skip
    assert x.shape == (2, 4, 8, 8)
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("x", "t", "y", "message"),
    [
        ((2, 4, 16, 16), (2,), (2,), r"x must be \(B, 4, 8, 8\)"),
        ((2, 3, 8, 8), (2,), (2,), r"x must be \(B, 4, 8, 8\)"),
        ((2, 4, 8, 8), (1,), (2,), "t must be"),
        ((2, 4, 8, 8), (2,), (3,), "y must be"),
    ],
)
def test_bad_input(x, t, y, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(x), torch.zeros(t), torch.zeros(y, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "adaln-one"}, "unknown block 'adaln-one'; did you mean"),
        ({"patch_size": 3}, "input_size must be a multiple of patch_size"),
        ({"num_heads": 5}, "hidden_size must be a multiple of num_heads"),
        ({"hidden_size": 50}, "hidden_size must be a multiple of 4"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_published_sizes():
    config = DiTConfig.of("DiT-B/4", input_size=64)
    assert (config.depth, config.hidden_size, config.num_heads, config.patch_size) == (*SIZES["B"], 4)
    assert config.input_size == 64
    with pytest.raises(ValueError, match="unknown size of DiT 'DiT-XXL/2'; did you mean 'DiT-XL/2'"):
        DiTConfig.of("DiT-XXL/2")


DIFFUSERS = [
    {},
    {"norm_elementwise_affine": True, "norm_eps": 1e-3},
    {"attention_bias": False, "activation_fn": "gelu", "out_channels": 8, "patch_size": 4},
    {"num_attention_heads": 2, "attention_head_dim": 40, "num_layers": 1, "in_channels": 3},
]


def diffusers_model(**changes):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    config = dict(num_attention_heads=4, attention_head_dim=12, num_layers=3, sample_size=16, num_embeds_ada_norm=10)
    model = diffusers.DiTTransformer2DModel(**{**config, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def same_embedders(model):
    """As in converted checkpoints."""
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


@torch.no_grad()
@pytest.mark.parametrize("changes", DIFFUSERS)
@pytest.mark.parametrize("shared", [False, True])
def test_against_diffusers(tmp_path, changes, shared):
    theirs = diffusers_model(**changes)
    if shared:
        same_embedders(theirs)
    theirs.save_pretrained(tmp_path)
    ours = fastdiff.models.load(tmp_path)
    assert len(ours.conditioning) == (1 if shared else theirs.config.num_layers)
    x, t, y = torch.randn(2, theirs.config.in_channels, 16, 16), torch.tensor([3.0, 777.0]), torch.tensor([1, 10])
    assert relative_error(ours(x, t, y), theirs(x, t, y).sample) <= 2e-5
