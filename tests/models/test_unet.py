"""The U-Net: shapes, what its inputs must be, and that every parameter takes part."""

import pytest
import torch

from fastdiff.models.parts.blocks import timestep_embedding
from fastdiff.models.unet import UNet, UNetConfig

SMALL = UNetConfig(channels=(16, 32, 48), blocks=1, attention_levels=(1, 2), num_classes=3, head_channels=16, groups=8,
                   embedding_channels=24)  # fmt: skip


def small(**changes):
    torch.manual_seed(0)
    model = UNet(UNetConfig(**{**SMALL.__dict__, **changes})).eval()
    for parameter in model.parameters():  # the zero-initialised layers would hide the others
        torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (32, 32)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_shapes(size, blocks):
    x = torch.randn(2, 3, *size)
    out = small(blocks=blocks, positions=size[0] if size[0] == size[1] else 0)(
        x, torch.tensor([0.0, 999.0]), torch.tensor([0, 3])
    )
    assert out.shape == x.shape


@pytest.mark.parametrize("positions", [0, 8])
def test_every_parameter_has_a_gradient(positions):
    model = small(positions=positions)
    y = torch.tensor([0, 1, 2, 3])
    model(torch.randn(4, 3, 8, 8), torch.tensor([0.0, 10.0, 500.0, 999.0]), y).square().mean().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_samples_of_a_batch_do_not_mix():
    model, x, t, y = small(), torch.randn(3, 3, 8, 8), torch.tensor([1.0, 50.0, 900.0]), torch.tensor([0, 1, 2])
    together = model(x, t, y)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_new_network_predicts_zero():
    torch.manual_seed(0)
    assert not UNet(SMALL)(torch.randn(1, 3, 8, 8), torch.tensor([5.0]), torch.tensor([1])).any()


def test_timestep_embedding():
    """dim / 2 frequencies from 1 down to 1 / max_period, cosines first."""
    t = torch.tensor([0.0, 2.5], dtype=torch.float64)
    out = timestep_embedding(t, 6)
    frequencies = 10_000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    torch.testing.assert_close(out[1], torch.cat([(2.5 * frequencies).cos(), (2.5 * frequencies).sin()]))
    torch.testing.assert_close(out[0], torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))


def test_times_keep_their_precision_in_half_precision():
    """999 and 1000 are one number in bfloat16."""
    model = small().to(torch.bfloat16)
    x, y = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16), torch.tensor([1])
    assert not torch.equal(model(x, torch.tensor([997.0]), y), model(x, torch.tensor([999.0]), y))


@pytest.mark.parametrize(
    ("x", "t", "y", "message"),
    [
        ((2, 3, 9, 8), (2,), (2,), "divisible by 4"),
        ((2, 4, 8, 8), (2,), (2,), r"x must be \(B, 3, H, W\)"),
        ((2, 3, 8, 8), (1,), (2,), "t must be"),
        ((2, 3, 8, 8), (2,), (1,), "y must be"),
        ((2, 3, 8, 8), (2,), None, "y must be"),
    ],
)
def test_bad_input(x, t, y, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(x), torch.zeros(t), None if y is None else torch.zeros(y, dtype=torch.int64))


def test_positions_fix_the_size_and_are_added():
    model = small(positions=8)
    with pytest.raises(ValueError, match="x must be 8 pixels a side"):
        model(torch.zeros(1, 3, 16, 16), torch.zeros(1), torch.tensor([0]))
    layer, x = model.positions, torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(layer(x) - x, layer.weight.expand_as(x))


def test_classes_for_a_model_without():
    model = small(num_classes=0)
    assert model(torch.zeros(1, 3, 8, 8), torch.zeros(1)).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="no classes"):
        model(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
