"""Controllers of attention: what they see in every family, what their changes do, and that they leave no trace."""

import math
import threading
import warnings

import pytest
import torch
from conftest import relative_error
from families_unclip import KINDS as UNCLIP_KINDS
from test_families import FAMILIES, T, Y, make, picture

import fastdiff
from fastdiff.models.ddp.blocks import LinearAttention
from fastdiff.models.dit import BLOCKS, DiT, DiTConfig
from fastdiff.models.parts.attention import Controller, Place, controlled
from fastdiff.models.parts.blocks import AttentionBlock, GroupNorm
from fastdiff.models.parts.transformer import CrossAttention
from fastdiff.models.unet_2d import UNet2D, UNet2DModelConfig
from fastdiff.models.unet_2d_condition import UNet2DCondition, UNet2DConditionConfig

WIDTHS = dict(in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8)
CROSS = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), mid_block_type="UNetMidBlock2DCrossAttn",
             up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=8)  # fmt: skip
SELF = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), mid_block_type="UNetMidBlock2D",
            up_block_types=("AttnUpBlock2D", "UpBlock2D"))  # fmt: skip
MORE = {
    **{
        f"dit-{block}": (
            lambda block=block: DiT(
                DiTConfig(input_size=16, hidden_size=32, depth=2, num_heads=2, num_classes=5, block=block)
            ),
            dict(x=picture(4), t=T, y=Y),
        )
        for block in BLOCKS
    },
    "unet-2d": (lambda: UNet2D(UNet2DModelConfig(**WIDTHS, **SELF)), dict(x=picture(4), t=T)),
    "unet-2d-condition": (
        lambda: UNet2DCondition(UNet2DConditionConfig(**WIDTHS, **CROSS)),
        dict(x=picture(4), t=T, context=torch.randn(3, 4, 8)),
    ),
}
# Of the classifiers only one has no attention but in its blocks. DALLE2-pytorch's prior and imagen-pytorch have a key
# more than tokens.
ELSE = ("classifier-spatial", "prior-dalle2", "imagen")
MODELS = [name for name in (*FAMILIES, *MORE) if not name.startswith(ELSE)]


@pytest.fixture
def model_of(monkeypatch):
    """From a name to a model with no branch at zero, and the arguments of a call."""
    for name, entry in MORE.items():
        monkeypatch.setitem(FAMILIES, name, entry)
    return make


class Recorder(Controller):
    """Keeps the maps of what it wants, as they were."""

    def __init__(self, wanted=lambda place: True):
        self.wants = wanted
        self.seen = []

    def edit(self, place, maps):
        self.seen.append((place, maps.clone()))
        return maps


class Uniform(Recorder):
    """Every query attends to all keys alike."""

    def edit(self, place, maps):
        super().edit(place, maps)
        return torch.full_like(maps, 1 / maps.shape[-1])


KINDS = {"ldm": {"self", "cross"}, "sdxl": {"self", "cross"}, "unet-2d-condition": {"self", "cross"},
         "controlled": {"self", "cross"},
         "dit-cross-attention": {"self", "cross"}, "glide": {"self", "joint"},
         "glide-both": {"self", "joint"}, "unet-3d": {"self", "cross"}, "unet-motion": {"self", "cross"},
         **{name: {"joint"} for name in ("ddp", "ddp-flags", "karras", "karras-classes")},
         **{name: set() for name in ("timegrad", "temporal", "temporal-plain")},
         **UNCLIP_KINDS}  # fmt: skip
MEMORY = {name: 4 for name in KINDS if name.startswith(("ddp", "karras"))}  # learned keys beside the pixels' own

VIDEOS = ("video", "unet-3d", "unet-motion")
NO_GRID = ("uvit", "music", *VIDEOS)  # in some or all layers: other tokens come first, or the tokens are frames


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_all_maps_are_seen(model_of, name):
    model, arguments = model_of(name)
    expected = model(**arguments)
    recorder = Recorder()
    with controlled(model, recorder):
        found = model(**arguments)
    assert relative_error(found, expected) <= 1e-4
    places = [place for place, _ in recorder.seen]
    modules = dict(model.named_modules())
    assert len({place.name for place in places}) == len(places)
    assert {place.kind for place in places} == KINDS.get(name, {"self"})
    for place, maps in recorder.seen:
        assert hasattr(modules[place.name], "num_heads")
        assert maps.shape[1] == modules[place.name].num_heads
        assert len(maps) == 3 or (name.startswith(VIDEOS) and len(maps) % 3 == 0)  # of frames or of pixels
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:3]))
        if place.size:
            more = 2 if name == "dit-in-context" else 0  # the time and the class
            assert maps.shape[2] == math.prod(place.size) + more
        else:
            assert (
                place.name == "pool" or place.name.startswith(("text.blocks.", "blocks.")) or name.startswith(NO_GRID)
            )
        if place.kind == "cross":
            assert maps.shape[3] == (2 if name.startswith("dit") else 4)
        else:
            more = MEMORY.get(name, 6) if place.kind == "joint" else 0
            assert maps.shape[3] - maps.shape[2] == more or place.name == "pool"
    # one for each layer with heads, but for linear attention, which has no maps
    layers = {at for at, module in modules.items() if hasattr(module, "num_heads")}
    assert {at for at in layers if not isinstance(modules[at], LinearAttention)} == {p.name for p in places}


@torch.no_grad()
@pytest.mark.parametrize("name", ["ldm", "glide", "dit-adaln-zero", "unet-2d", "adm", "autoencoder-kl"])
def test_layers_that_are_not_wanted_and_calls_afterwards_are_the_same(model_of, name):
    model, arguments = model_of(name)
    expected = model(**arguments)
    asked = []
    with controlled(model, Uniform(asked.append)):
        assert torch.equal(model(**arguments), expected)
    assert asked
    with controlled(model, Uniform()):
        assert not torch.equal(model(**arguments), expected)
    assert torch.equal(model(**arguments), expected)
    with pytest.raises(ZeroDivisionError), controlled(model, Recorder(lambda place: 1 / 0)):
        model(**arguments)
    assert torch.equal(model(**arguments), expected)
    with controlled(make("ddpm")[0], Uniform()):  # another model
        assert torch.equal(model(**arguments), expected)


@torch.no_grad()
def test_uniform_maps_by_hand():
    """Then each query's result is the mean of the values."""
    torch.manual_seed(0)
    block = AttentionBlock(32, 2, norm=lambda channels: GroupNorm(8, channels))
    torch.nn.init.normal_(block.proj.weight, std=0.3)
    x = torch.randn(2, 32, 3, 5)
    v = block.qkv(block.norm(x).flatten(2).transpose(1, 2))[..., 64:]
    expected = x + block.proj(v.mean(1))[:, :, None, None]
    recorder = Uniform()
    with controlled(block, recorder):
        torch.testing.assert_close(block(x), expected)
    ((place, maps),) = recorder.seen
    assert place == Place("", "self", (3, 5))
    assert maps.shape == (2, 2, 15, 15)


@torch.no_grad()
def test_swapped_words_by_hand():
    """Cross-attention whose maps of two words are exchanged is that with the two values exchanged."""
    torch.manual_seed(0)
    layer = CrossAttention(16, 2, 8, context_channels=8, dropout=0.0)
    x, context = torch.randn(2, 9, 16), torch.randn(2, 4, 8)

    class Swap(Controller):
        def edit(self, place, maps):
            assert place.kind == "cross"
            return maps[..., [1, 0, 2, 3]]

    swapped = context[:, [1, 0, 2, 3]]
    q, k, v = (
        part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (layer.to_q(x), layer.to_k(context), layer.to_v(swapped))
    )
    expected = layer.to_out(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    with controlled(layer, Swap()):
        torch.testing.assert_close(layer(x, context), expected)


@torch.no_grad()
def test_the_whole_attention_can_be_replaced():
    """As an IP-Adapter does: more keys and values, weighed apart."""
    torch.manual_seed(0)
    layer = CrossAttention(16, 2, 8, context_channels=8, dropout=0.0)
    x, context, image = torch.randn(2, 9, 16), torch.randn(2, 4, 8), torch.randn(2, 3, 8)

    class Adapter(Controller):
        def attend(self, place, q, k, v):
            keys, values = (to(image).unflatten(-1, (2, 8)).transpose(1, 2) for to in (layer.to_k, layer.to_v))
            return fastdiff.ops.attention(q, k, v) + 0.5 * fastdiff.ops.attention(q, keys, values)

    bias = layer.to_out.bias
    expected = layer(x, context) + 0.5 * (layer(x, image) - bias)
    with controlled(layer, Adapter()):
        torch.testing.assert_close(layer(x, context), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["prior", "prior-dalle2", "imagen-base", "unclip-decoder"])
def test_masks_and_scales_of_the_attention(name):
    """What a controller sees has them: the maps are those that the operator uses."""
    model, arguments = make(name)
    expected = model(**arguments)
    with controlled(model, Controller()):
        assert relative_error(model(**arguments), expected) <= 2e-5


def test_a_mask_is_not_lost_on_a_controller_that_takes_none():
    class Other(Controller):
        def attend(self, place, q, k, v):
            return fastdiff.ops.attention(q, k, v)

    model, arguments = make("prior")
    with (
        controlled(model, Other()),
        pytest.raises(ValueError, match=r"Other replaces the attention of blocks\.0, which has a mask"),
    ):
        model(**arguments)


@torch.no_grad()
def test_the_innermost_that_wants_a_layer_has_it(model_of):
    model, arguments = model_of("ldm")
    outer, inner = Recorder(), Recorder(lambda place: place.kind == "cross")
    with controlled(model, outer), controlled(model, inner):
        model(**arguments)
    assert {place.kind for place, _ in inner.seen} == {"cross"}
    assert {place.kind for place, _ in outer.seen} == {"self"}


@torch.no_grad()
def test_of_this_thread_alone(model_of):
    model, arguments = model_of("ldm")
    expected, found = model(**arguments), []
    thread = threading.Thread(target=lambda: found.append(call(model, arguments)))
    with controlled(model, Uniform()):
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


@torch.no_grad()
def call(model, arguments):
    return model(**arguments)


@torch.no_grad()
@pytest.mark.parametrize(
    "compiled",
    [fastdiff.optimize, pytest.param(lambda model: torch.compile(model, backend="eager"), marks=pytest.mark.long)],
    ids=["optimize", "torch.compile"],
)
def test_compiled_models(model_of, compiled):
    """Captured without a controller, seen with one, and captured again afterwards."""
    model, arguments = model_of("unet-2d")
    with controlled(model, Uniform()):
        expected = model(**arguments)
    fast = compiled(model)
    first = fast(**arguments)
    assert relative_error(first, expected) > 1e-3
    recorder = Uniform()
    with controlled(model, recorder):
        torch.testing.assert_close(fast(**arguments), expected, rtol=1e-4, atol=1e-5)
    assert recorder.seen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fast(**arguments), first)


@torch.no_grad()
def test_maps_of_another_shape_are_refused(model_of):
    class Wrong(Controller):
        def edit(self, place, maps):
            return self.given(maps)

    model, arguments = model_of("unet-2d")
    for given, got in ((lambda maps: maps[:, :1], r"\(3, 1, 64, 64\)"), (lambda maps: None, "NoneType")):
        controller = Wrong()
        controller.given = given
        with (
            controlled(model, controller),
            pytest.raises(ValueError, match=rf"\(3, 8, 64, 64\) at down.1.1, got {got}|at down.2.1, got {got}"),
        ):
            model(**arguments)


@torch.no_grad()
def test_sampling(model_of):
    """Guided: the conditional half of the batch comes first."""
    model, _ = model_of("unet-2d-condition")
    recorder = Uniform(lambda place: place.kind == "cross" and place.size == (16, 16))
    context = torch.randn(1, 4, 8)
    options = dict(schedule="cosine", prediction="v", solver="ddim", steps=2, seed=0, guidance=2.0,
                   cond={"context": context}, uncond={"context": 0 * context})  # fmt: skip
    plain = fastdiff.sample(model, (1, 4, 16, 16), **options)
    with controlled(model, recorder):
        changed = fastdiff.sample(model, (1, 4, 16, 16), **options)
    assert not torch.equal(plain, changed)
    _, maps = recorder.seen[0]
    assert maps.shape == (2, 8, 256, 4)
    assert maps[0].std() > 1e-3
    assert maps[1].std() < 1e-6  # all keys are the same without the condition
    assert torch.equal(fastdiff.sample(model, (1, 4, 16, 16), **options), plain)
