"""What is added inside a U-Net, as ControlNet does: nothing, where it is added, against diffusers, and refused."""

import pytest
import torch
from conftest import relative_error
from test_families import FAMILIES, make

from fastdiff.models.parts.backbone import Backbone, Control
from fastdiff.models.unet import UNet, UNetConfig

# All U-Nets: those of the table that are no classifiers, autoencoders or priors.
NETWORKS = [name for name in FAMILIES if not name.startswith(("classifier", "autoencoder", "prior"))]


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
def test_against_diffusers(tmp_path):
    """The residuals of a diffusers ControlNet, with random weights, given to their U-Net and to ours."""
    diffusers = pytest.importorskip("diffusers")
    from test_diffusers import CONDITIONED, TOLERANCE, random_model, saved

    config = CONDITIONED[0]
    theirs = random_model(diffusers.UNet2DConditionModel, config)
    ours = saved(theirs, tmp_path)
    taken = {key: value for key, value in config.items() if key != "up_block_types"}
    net = random_model(diffusers.ControlNetModel, {**taken, "conditioning_embedding_out_channels": (8, 16)})
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    x, t, context = torch.randn(2, 4, 16, 16), torch.tensor([3, 977]), torch.randn(2, 5, 24)
    skips, middle = net(x, t, context, controlnet_cond=torch.rand(2, 3, 32, 32), return_dict=False)
    expected = theirs(
        x, t, context, down_block_additional_residuals=skips, mid_block_additional_residual=middle
    ).sample  # fmt: skip
    assert relative_error(ours(x, t, context), expected) > 1e-2
    assert relative_error(ours(x, t, context, control=Control(skips, middle)), expected) <= TOLERANCE


@torch.no_grad()
def test_the_middle_may_be_left_out_and_skips_may_not():
    torch.manual_seed(0)
    model = UNet(UNetConfig((16, 32), 1, (1,), head_channels=16, embedding_channels=16, groups=4))
    torch.nn.init.normal_(model.conv_out.weight, std=0.1)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 977.0])
    _, (skips, middle) = residuals(model, {"x": x, "t": t}, 0.0)
    assert torch.equal(model(x, t, control=Control(skips)), model(x, t))
    with pytest.raises(ValueError, match="control must have 4 skips, one for each of the network's, got 3"):
        model(x, t, control=Control(skips[:3], middle))
