"""ControlNets: against diffusers, a copy that adds nothing yet, whole runs, and what is refused."""

import pytest
import torch
from conftest import relative_error
from original_names import layout_of, state_dict
from test_families import LDM_FIELDS, make, picture

import fastdiff
from fastdiff.models.controlnet import ControlledUNet, ControlNet
from fastdiff.models.ldm import LDMConfig, LDMUNet

TOLERANCE = 2e-5  # of the output's RMS: both compute in float32
HINTED = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 24,
          "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 4,
          "conditioning_embedding_out_channels": (8, 16)}  # fmt: skip
SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True,
        "projection_class_embeddings_input_dim": 11 + 6 * 8, "transformer_layers_per_block": (1, 2)}  # fmt: skip
CONFIGS = {
    "plain": HINTED,
    "sdxl": {**HINTED, **SDXL, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")},
    "bgr": {**HINTED, "controlnet_conditioning_channel_order": "bgr", "flip_sin_to_cos": False, "freq_shift": 1},
    "pooled": {**HINTED, "global_pool_conditions": True, "only_cross_attention": True, "norm_eps": 1e-6},
    "unused_projection": {**HINTED, "encoder_hid_dim": 10, "num_attention_heads": (2, 8), "attention_head_dim": 8,
                  "mid_block_scale_factor": 2**0.5, "downsample_padding": 0},
    "self": {**HINTED, "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D"), "num_class_embeds": 7,
             "mid_block_type": "UNetMidBlock2D", "resnet_time_scale_shift": "scale_shift"},
    "channels": {**HINTED, "conditioning_channels": 1, "conditioning_embedding_out_channels": (8, 8, 16),
                 "class_embed_type": "projection", "projection_class_embeddings_input_dim": 9},
}  # fmt: skip


def arguments(config):
    """Of a call with a batch of two, as ours are called and as diffusers' are."""
    torch.manual_seed(1)
    ours = {"x": torch.randn(2, 4, 12, 8), "t": torch.tensor([3, 977])}
    ours["context"] = torch.randn(2, 5, 24)
    added = {}
    if "addition_embed_type" in config:
        added = {"text_embeds": torch.randn(2, 11), "time_ids": torch.tensor([[64.0, 48, 0, 3, 64, 64]] * 2)}
    if "num_class_embeds" in config:
        ours["class_labels"] = torch.tensor([1, 3])
    if config.get("class_embed_type") == "projection":
        ours["class_labels"] = torch.randn(2, 9)
    theirs = {"sample": ours["x"], "timestep": ours["t"], "encoder_hidden_states": ours["context"],
              "class_labels": ours.get("class_labels"), "added_cond_kwargs": added}  # fmt: skip
    return {**ours, **added}, theirs


def of_diffusers(config):
    """diffusers' ControlNet with random weights, no layer at zero."""
    diffusers = pytest.importorskip("diffusers")
    from test_diffusers import random_model

    net = random_model(diffusers.ControlNetModel, config)
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_against_diffusers(config, tmp_path):
    """Its residuals, plain and in guess mode, saved with a config and as a state dict."""
    net = of_diffusers(config)
    net.save_pretrained(tmp_path)
    ours, given = arguments(config)
    factor = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    hint = torch.rand(2, config.get("conditioning_channels", 3), 12 * factor, 8 * factor)
    found = fastdiff.models.load(tmp_path)(**ours, hint=hint)
    skips, middle = net(**given, controlnet_cond=hint, return_dict=False)
    for part, expected in zip((*found.skips, found.middle), (*skips, middle), strict=True):
        assert part.shape == expected.shape
        assert relative_error(part, expected) <= TOLERANCE


@torch.no_grad()
def test_their_u_net_with_two_controls(tmp_path):
    """Two ControlNets at two scales, in guess mode, against diffusers' own sum and U-Net."""
    diffusers = pytest.importorskip("diffusers")
    from test_diffusers import CONDITIONED, random_model, saved

    theirs = random_model(diffusers.UNet2DConditionModel, CONDITIONED[0])
    nets = {"edges": of_diffusers(HINTED), "depth": of_diffusers({**HINTED, "norm_eps": 1e-6})}
    scales = {"edges": 0.7, "depth": 1.4}
    ours, given = arguments(HINTED)
    hints = {name: torch.rand(2, 3, 24, 16) for name in nets}
    multi = diffusers.models.controlnets.MultiControlNetModel(list(nets.values()))
    skips, middle = multi(
        **given, controlnet_cond=list(hints.values()), conditioning_scale=list(scales.values()), guess_mode=True,
        return_dict=False,
    )  # fmt: skip
    expected = theirs(**given, down_block_additional_residuals=skips, mid_block_additional_residual=middle).sample
    unet = saved(theirs, tmp_path / "unet")
    controls = {name: saved(net, tmp_path / name) for name, net in nets.items()}
    model = ControlledUNet(unet, controls, scales=scales, guess=True)
    assert relative_error(model(**ours), expected) > 1e-2
    assert relative_error(model(**ours, **hints), expected) <= TOLERANCE


@torch.no_grad()
def test_a_copy_adds_nothing_and_learns():
    """The trainable copy has the U-Net's weights, and the only gradients at first are those of zero convolutions."""
    unet, call = make("ldm")
    net = ControlNet.copy_of(unet, hint_channels=1)
    own, theirs = dict(net.named_parameters()), dict(unet.named_parameters())
    shared = {name for name in own if not name.startswith(("hint.", "zero_"))}
    assert all(torch.equal(own[name], theirs[name]) for name in shared)
    assert {"down.1.0.skip.weight", "middle.0.conv1.weight", "time_embedding.2.bias"} - shared <= {
        "down.1.0.skip.weight"
    }
    model = ControlledUNet(unet, {"edges": net})
    hint = torch.rand(3, 1, 128, 128)
    assert torch.equal(model(**call, edges=hint), unet(**call))
    with torch.enable_grad():
        model(**call, edges=hint).square().mean().backward()
    assert {name for name, p in own.items() if p.grad is not None and p.grad.any()} >= {
        "zero_convs.0.weight", "zero_convs.1.bias", "zero_middle.weight",
    }  # fmt: skip


@torch.no_grad()
def test_a_copy_of_a_u_net_with_a_vector_takes_it_too():
    """And pictures that are fewer times larger than the latents, with fewer widths."""
    unet, call = make("sdxl")
    net = ControlNet.copy_of(unet, hint_widths=(8, 16))
    assert torch.equal(net.class_embedding[2].weight, unet.class_embedding[2].weight)
    hint = torch.rand(3, 3, 32, 32)
    assert torch.equal(ControlledUNet(unet, {"edges": net})(**call, edges=hint), unet(**call))
    torch.nn.init.normal_(net.zero_middle.weight)
    other = {**call, "y": call["y"] + 1}
    assert relative_error(net(**other, hint=hint).middle, net(**call, hint=hint).middle) > 1e-3
    with pytest.raises(ValueError, match=r"y must have one row a sample \(3\), got None"):
        net(**{**call, "y": None}, hint=hint)
    with pytest.raises(ValueError, match=r"hint must be \(3, 3, 32, 32\), 2 times x's size, got \(3, 3, 128, 128\)"):
        net(**call, hint=torch.rand(3, 3, 128, 128))


@torch.no_grad()
def test_a_hint_may_be_left_out_and_the_middle_alone_be_controlled():
    model, call = make("controlled")
    names = ("edges", "depth")
    plain = {name: value for name, value in call.items() if name not in names}
    assert torch.equal(model(**plain), model.unet(**plain))
    one = model(**plain, edges=call["edges"])
    assert relative_error(one, model(**plain)) > 1e-3
    assert relative_error(one, model(**call)) > 1e-3
    middle = ControlledUNet(model.unet, {"edges": model.controls["edges"]}, only_middle=True)(
        **plain, edges=call["edges"]
    )
    control = model.controls["edges"](**plain, hint=call["edges"])
    assert torch.equal(middle, model.unet(**plain, control=control.only_middle()))


@pytest.mark.parametrize("leave_out", [False, True])
@torch.no_grad()
def test_sampling_with_guidance(leave_out):
    """One batch of both halves, or two calls where uncond has no hint; against a model that is written by hand."""
    model, call = make("controlled")
    cond = {name: value for name, value in call.items() if name not in ("x", "t")}
    uncond = {**cond, "context": torch.zeros_like(cond["context"])}
    if leave_out:
        uncond = {**uncond, "edges": None, "depth": None}
    options = dict(schedule=fastdiff.schedules.VPDiscrete.scaled_linear(), prediction="eps", solver="ddim", steps=2)

    def by_hand(x, t):
        a, b = model(x, t, **cond), model(x, t, **uncond)
        return b + 3 * (a - b)

    x = fastdiff.sample(model, call["x"], guidance=3.0, cond=cond, uncond=uncond, **options)
    assert relative_error(x, fastdiff.sample(by_hand, call["x"], **options)) <= TOLERANCE


@torch.no_grad()
def test_optimized():
    model, call = make("controlled")
    expected = model(**call)
    fastdiff.optimize(model)
    for _ in range(2):
        assert relative_error(model(**call), expected) <= TOLERANCE
    assert fastdiff.explain(model)


@torch.no_grad()
def test_caching():
    """A full call is exact, and so is one that reuses where nothing has changed; the control is always anew."""
    model, call = make("controlled")
    cached = fastdiff.caching.Cached(model, "deep:2")
    full = model(**call)
    assert torch.equal(cached(**call), full)
    assert torch.equal(cached(**call), full)
    assert (cached.cache.full, cached.cache.reused) == (1, 1)
    cached.reset()
    cached(**call)
    assert relative_error(cached(**{**call, "edges": call["edges"].flip(0)}), full) > 1e-4


def test_a_whole_checkpoint_has_parts():
    """control_model. and model.diffusion_model., as published; the ControlNet comes first."""
    fields = {**LDM_FIELDS, "transformer_depth": 1}
    del fields["out_channels"]
    controlnet, unet = layout_of("ControlNet of Stable"), layout_of("the U-Net of LDM")
    state = {
        **state_dict(controlnet, {**fields, "hint_channels": 2}, "control_model."),
        **state_dict(unet, LDM_FIELDS, "model.diffusion_model."),
    }
    heads = {"num_head_channels": 16}
    assert isinstance(fastdiff.models.load(state, config=heads), ControlNet)
    net = fastdiff.models.load(state, part="controlnet", config=heads)
    assert net.config.hint_channels == 2
    assert isinstance(fastdiff.models.load(state, part="unet", config=heads), LDMUNet)
    with pytest.raises(ValueError, match=r"unknown part .* 'control'; did you mean 'controlnet'"):
        fastdiff.models.load(state, part="control", config=heads)


def test_bad_input():
    model, call = make("controlled")
    net = model.controls["edges"]
    with pytest.raises(ValueError, match=r"hint must be \(3, 3, 32, 32\), 8 times x's size, got \(3, 3, 4, 4\)"):
        model(**{**call, "edges": picture(size=4)})
    with pytest.raises(ValueError, match=r"hint must be \(3, 3, 32, 32\), .* got \(3, 4, 32, 32\)"):
        model(**{**call, "edges": picture(4, size=32)})
    with pytest.raises(ValueError, match=r"context must be \(3, S, 8\)"):
        net(call["x"], call["t"], call["context"][..., :5], hint=call["edges"])
    with pytest.raises(TypeError, match="unet must be one of fastdiff's U-Nets, got Identity"):
        ControlledUNet(torch.nn.Identity(), {"edges": net})
    with pytest.raises(TypeError, match=r"controls\['edges'\] must be a ControlNet, got LDMUNet"):
        ControlledUNet(model.unet, {"edges": model.unet})
    with pytest.raises(ValueError, match="the name 'context', which is an argument of the U-Net's call"):
        ControlledUNet(model.unet, {"context": net})
    with pytest.raises(ValueError, match=r"skips have \[32, 32, 32, 64\] channels, not \[64, 64, 64, 128\]"):
        ControlledUNet(LDMUNet(LDMConfig(**{**LDM_FIELDS, "model_channels": 64})), {"edges": net})
    with pytest.raises(ValueError, match="scales has 'depth', controls only edges"):
        ControlledUNet(model.unet, {"edges": net}, scales={"depth": 1.0})
