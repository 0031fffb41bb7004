"""Controllers on networks of diffusers: they see the attention, change it, and leave the network as it was."""

import pytest
import torch
from conftest import relative_error

import fastdiff
from fastdiff.editing import Tokens, prompt_edit, prompt_to_prompt
from fastdiff.models.parts.attention import Controller, controlled
from fastdiff.models.parts.diffusers_attention import Through

diffusers = pytest.importorskip("diffusers")

from integrations.small_parts import randomized, unet  # noqa: E402

T = torch.tensor([3.0, 500.0])


def on_pixels():
    """Self-attention on feature maps, with its own norm and residual."""
    torch.manual_seed(0)
    return randomized(
        diffusers.UNet2DModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    )  # fmt: skip


NETWORKS = {
    "conditional": (unet, 4, dict(encoder_hidden_states=torch.randn(2, 5, 12))),
    "masked": (
        unet, 4,
        dict(encoder_hidden_states=torch.randn(2, 5, 12), encoder_attention_mask=torch.tensor([[1, 1, 1, 0, 0]] * 2)),
    ),
    "pixels": (on_pixels, 3, {}),
}  # fmt: skip


class Recorder(Controller):
    def __init__(self):
        self.places = []

    def edit(self, place, maps):
        self.places.append((place, tuple(maps.shape)))
        return maps


class Uniform(Controller):
    def edit(self, place, maps):
        return torch.full_like(maps, 1 / maps.shape[-1])


def processors(network):
    return {name: type(m.processor) for name, m in network.named_modules() if hasattr(m, "processor")}


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_all_maps_are_seen_and_nothing_stays(name):
    make, channels, given = NETWORKS[name]
    network, x = make(), torch.randn(2, channels, 8, 12)
    usual = processors(network)
    call = lambda: network(x, T, return_dict=False, **given)[0]  # noqa: E731
    expected, recorder = call(), Recorder()
    with controlled(network, recorder):
        with controlled(network, Controller()):
            assert relative_error(call(), expected) < 1e-5
        assert relative_error(call(), expected) < 1e-5
        assert set(processors(network).values()) == {Through}
    assert {place.name for place, _ in recorder.places} == set(usual)
    for place, (_, _, queries, keys) in recorder.places:
        assert place.size in ((8, 12), (4, 6))
        assert queries == place.size[0] * place.size[1]
        assert keys == (5 if place.kind == "cross" else queries)
        assert place.kind == ("cross" if place.name.endswith("attn2") else "self")
    with controlled(network, Uniform()):
        assert relative_error(call(), expected) > 1e-3
    with pytest.raises(RuntimeError), controlled(network, Recorder()):
        network(torch.zeros(2, channels + 1, 8, 12), T, **given)
    assert processors(network) == usual
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    assert torch.equal(call(), expected)


def test_prompt_to_prompt():
    """The source is as without an edit, identical prompts give identical pictures, and other prompts others."""
    network = unet()
    table = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    red, blue = (Tokens((word, "heart"), (number, 3), (word, "heart")) for number, word in enumerate(("red", "blue")))
    context = lambda *prompts: {"encoder_hidden_states": torch.stack([table[list(p.ids)] for p in prompts])}  # noqa: E731
    given = dict(
        uncond={"encoder_hidden_states": torch.zeros(1, 2, 12)},
        guidance=3.0,
        schedule="scaled-linear",
        prediction="eps",
    )

    def edited(*prompts):
        edit = prompt_edit(prompts, steps=3, length=2, edit="replace", cross=1.0, self_attention=0.5)
        return prompt_to_prompt(network, (1, 4, 8, 8), edit, cond=context(*prompts), **given)

    same, other = edited(red, red), edited(red, blue)
    assert torch.equal(same[0], same[1])
    times = fastdiff.editing.stepping.times_of(fastdiff.schedules.get_schedule("scaled-linear"), None, 3)
    plain = fastdiff.sample(
        network, (2, 4, 8, 8), solver="ddim", grid=times, seed=[0, 0], cond=context(red, blue), **given
    )
    assert relative_error(other[0], plain[0]) < 1e-4
    assert relative_error(other[1], plain[1]) > 1e-3


def test_layers_with_another_processor_are_left_alone():
    class Own:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            return torch.zeros_like(hidden_states)

    network = unet()
    network.set_attn_processor(Own())
    with controlled(network, Recorder()):
        assert set(processors(network).values()) == {Own}
    word = Tokens(("red",), (1,), ("red",))
    with pytest.raises(ValueError, match="reaches no cross-attention"):
        prompt_to_prompt(
            network, (1, 4, 8, 8), prompt_edit([word, word], steps=2, length=5, edit="replace"), schedule="cosine",
            prediction="eps", guidance=None, cond={"encoder_hidden_states": torch.randn(2, 5, 12)},
        )  # fmt: skip
