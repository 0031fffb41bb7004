"""What is added inside a U-Net, as ControlNet does: nothing, where it is added, scaled, summed, and refused."""

import pytest
import torch
from conftest import relative_error
from test_families import FAMILIES, make

from fastdiff.models.parts.backbone import Backbone
from fastdiff.models.parts.control import Control, guess_scales, summed
from fastdiff.models.unet import UNet, UNetConfig

# All U-Nets of the table that have no control already.
NETWORKS = [
    name
    for name, (build, _) in FAMILIES.items()
    if any(isinstance(part, Backbone) for part in build().modules()) and not name.startswith("controlled")
]

NETWORKS = [name for name in NETWORKS if not name.startswith(("sit", "uvit", "video"))]  # these take no control


def residuals(model, arguments, scale):
    """A control of normal numbers in the shapes of the skips and of the middle."""
    backbone = next(part for part in model.modules() if isinstance(part, Backbone))
    shapes = []
    hooks = [
        part.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        for part in (backbone.conv_in, *(stage[-1] for stage in backbone.down), backbone.middle[-1])
    ]
    model(**arguments)
    for hook in hooks:
        hook.remove()
    torch.manual_seed(1)
    *skips, middle = (scale * torch.randn(shape) for shape in shapes)
    return backbone, Control(skips, middle)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_zeros_change_nothing(name):
    model, arguments = make(name)
    _, control = residuals(model, arguments, 0.0)
    assert torch.equal(model(**arguments, control=control), model(**arguments))


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_added_to_the_skips_and_the_middle(name):
    """By hand: to the skip's half of what each stage on the way up starts from, and to the middle's result."""
    model, arguments = make(name)
    backbone, control = residuals(model, arguments, 0.3)
    found = model(**arguments, control=control)
    assert relative_error(found, model(**arguments)) > 1e-3

    def add(stage, residual):
        def hook(layer, inputs):
            h, *rest = inputs
            return torch.cat([h[:, : -residual.shape[1]], h[:, -residual.shape[1] :] + residual], dim=1), *rest

        stage[0].register_forward_pre_hook(hook)

    for stage, residual in zip(backbone.up, reversed(control.skips)):
        add(stage, residual)
    backbone.middle[-1].register_forward_hook(lambda module, inputs, output: output + control.middle)
    assert torch.equal(found, model(**arguments))


@torch.no_grad()
def test_either_may_be_left_out_and_one_of_the_skips_may_not():
    torch.manual_seed(0)
    model = UNet(UNetConfig((16, 32), 1, (1,), head_channels=16, embedding_channels=16, groups=4))
    torch.nn.init.normal_(model.conv_out.weight, std=0.1)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 977.0])
    _, (skips, middle) = residuals(model, {"x": x, "t": t}, 0.0)
    assert torch.equal(model(x, t, control=Control(skips)), model(x, t))
    assert torch.equal(model(x, t, control=Control(None, middle)), model(x, t))
    with pytest.raises(ValueError, match="control must have 4 skips, one for each of the network's, got 3"):
        model(x, t, control=Control(skips[:3], middle))


def test_scales_and_sums():
    a, b = torch.ones(2), torch.full((2,), 3.0)
    skips, middle = Control([a, b], a).scaled([2, 3, 4])
    assert [float(part[0]) for part in (*skips, middle)] == [2, 9, 4]
    skips, middle = summed([Control([a, b], b), Control([b, b]).scaled(0.5), Control(None, a)])
    assert [float(part[0]) for part in (*skips, middle)] == [2.5, 4.5, 4]
    assert Control([a], b).only_middle() == Control(None, b)
    with pytest.raises(ValueError, match="scale must be one number or 3, one for each residual, got 2"):
        Control([a, b], a).scaled([1, 2])
    with pytest.raises(ValueError, match="the controls have 1 and 2 skips"):
        summed([Control([a]), Control([a, b])])


def test_guess_scales():
    torch.testing.assert_close(torch.tensor(guess_scales(13)), torch.logspace(-1, 0, 13))
    assert guess_scales(1) == (1.0,)
