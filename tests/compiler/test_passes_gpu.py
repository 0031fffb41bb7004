"""What a GPU's graphs have: convolutions and gated units with all that follows, layouts; and whole networks, run by
references on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compiler.as_on_gpu import agrees, called, matches, stand_in
from compiler.test_passes import check
from torch import nn

import fastdiff
from fastdiff import ops
from fastdiff.compiler.convolution import Conv2d
from fastdiff.compiler.report import reports_of


@pytest.fixture(autouse=True)
def _as_on_gpu(monkeypatch):
    stand_in(monkeypatch)


def convolutions(model: nn.Module) -> list[Conv2d]:
    (report, *_) = reports_of(list(model.parameters()))
    return [part for part in report.graph.module.modules() if isinstance(part, Conv2d)]


class Block(nn.Module):
    """A residual block, upsampled, whose second convolution has an activation in its end."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(8, 8, 3, padding=1, bias=bias) for _ in range(3))
        self.time = nn.Linear(6, 8)

    def forward(self, x, embedding):
        h = self.first(x) + self.time(embedding)[:, :, None, None]
        h = self.second(F.silu(h)) + x
        return F.silu(self.third(F.interpolate(h, scale_factor=2.0, mode="nearest")))


def given(batch: int = 2, height: int = 6, width: int = 5, dtype: torch.dtype = torch.float32):
    return torch.randn(batch, 8, height, width).to(dtype), torch.randn(batch, 6).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_what_follows_a_convolution_is_part_of_its_operator(bias, monkeypatch):
    """So that who computes is decided in one place, for convolutions of graphs too."""
    torch.manual_seed(0)
    asked = []
    run = ops.conv2d.run

    def noted(a, inplace=False):
        asked.append([a.upsample, *(t is not None for t in (a.bias, a.channel_bias, a.residual)), a.activation])
        return run(a, inplace)

    monkeypatch.setattr(ops.conv2d, "run", noted)
    model = fastdiff.optimize(Block(bias=bias).eval())
    for size in ((2, 6, 5), (2, 6, 5), (3, 4, 8)):
        inputs = given(*size)
        agrees(model, *inputs)
    assert asked == 3 * [
        [1, bias, True, False, "silu"], [1, bias, False, True, None], [2, bias, False, False, "silu"]
    ]  # fmt: skip
    assert matches(model, "conv2d") == [3, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_maps_are_channels_last_in_halves(dtype):
    """From the first convolution to the last; the results have the strides of the original."""
    torch.manual_seed(0)
    half = dtype is torch.bfloat16
    model = fastdiff.optimize(Block().eval().to(dtype))
    for _ in range(2):
        agrees(model, *given(dtype=dtype))
    assert [each.channels_last for each in convolutions(model)] == [half] * 3
    text = str(fastdiff.explain(model))
    assert ("model.to(memory_format=torch.channels_last) spares that" in text) is half
    model = fastdiff.optimize(fastdiff.restore(model).to(memory_format=torch.channels_last))
    agrees(model, *given(dtype=dtype))
    assert "spares that" not in str(fastdiff.explain(model))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("first", [True, False])
def test_gated_units_are_linear_layers(activation, first):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 96), nn.Linear(48, 16)

        def forward(self, x):
            a, gate = self.up(x).chunk(2, -1)
            gate = (
                F.silu(gate)
                if activation == "silu"
                else F.gelu(gate, approximate="tanh" if "_" in activation else "none")
            )
            return self.down(a * gate if first else gate * a)

    torch.manual_seed(0)
    model = fastdiff.optimize(Gated().eval())
    for batch, rows in ((2, 5), (2, 5), (3, 9)):
        check(model, (torch.randn(batch, rows, 4, 16).flatten(1, 2),), model)
    for number in range(2):
        names = called(model, number)
        assert names.count("linear") == 2
        assert "chunk" not in names
        assert "gelu" not in names


def unet(**options) -> nn.Module:
    diffusers = pytest.importorskip("diffusers", reason="the networks are diffusers'")
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=8, **options,
    )  # fmt: skip
    return model.eval()


SD = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
XL = dict(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type="text_time",
    addition_time_embed_dim=8, projection_class_embeddings_input_dim=24 + 6 * 8,
)  # fmt: skip


def arguments(name: str, batch: int, size: int) -> tuple:
    x, text = torch.randn(batch, 4, size, size), torch.randn(batch, 7, 32)
    if name == "sd":
        return x, torch.tensor(300), text
    added = {"text_embeds": torch.randn(batch, 24), "time_ids": torch.full((batch, 6), 8.0)}
    return x, torch.tensor(300), text, None, None, None, None, added


@pytest.mark.parametrize("name", ["sd", pytest.param("xl", marks=pytest.mark.long)])
def test_unets_of_stable_diffusion(name):
    model = unet(**(SD if name == "sd" else XL))
    fast = fastdiff.optimize(model)
    for batch, size in ((2, 8), (2, 8), (1, 16)):
        agrees(fast, *arguments(name, batch, size))
    blocks = 4 if name == "sd" else 8  # of attention
    resnets = 8
    for number, products in enumerate(matches(fast, "joined")):
        names = called(fast, number)
        assert products == 3 * blocks + 2 * blocks + resnets
        assert names.count("JoinedLinear") == blocks + 2  # q, k, v; all of the text; all of the time
        assert "gated" not in names
        assert "gelu" not in names
        assert names.count("residual_ada_layer_norm") == 2 * blocks + (0 if name == "sd" else blocks - 4)


def test_a_decoder():
    diffusers = pytest.importorskip("diffusers", reason="the networks are diffusers'")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
    ).decoder.eval()  # fmt: skip
    fast = fastdiff.optimize(model)
    for size in (8, 8, 12):
        # PyTorch's tensors without values have other strides after the attention than those on the CPU.
        agrees(fast, torch.randn(1, 4, size, size), strides=False)
    assert matches(fast, "conv2d") == [len([m for m in model.modules() if isinstance(m, nn.Conv2d)])] * 2
