"""What a GPU's graphs have of group norms: what a convolution leaves to be added before them, and concatenations that
they read in place. Run by references on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compiler.as_on_gpu import agrees, called, matches, stand_in
from compiler.test_passes_gpu import SD, arguments, unet
from torch import nn

import fastdiff
from fastdiff.compiler.report import reports_of


@pytest.fixture
def as_on_gpu(monkeypatch):
    stand_in(monkeypatch)


def notes(model: nn.Module, name: str) -> str:
    """What a pass says of what it left."""
    reports = reports_of(list(model.parameters()))
    return str([pass_notes.misses for report in reports for pass_notes in report.passes if pass_notes.name == name])


class Resnet(nn.Module):
    """A residual block of a U-Net with a skip, and the norm of the next. change: what is done otherwise."""

    def __init__(self, change: str = "") -> None:
        super().__init__()
        self.change = change
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(4, n) for n in (24, 16, 16))
        self.conv1, self.conv2 = nn.Conv2d(24, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        wide = change == "wide shortcut"
        self.shortcut = nn.Conv2d(24, 16, 3 if wide else 1, padding=int(wide))
        self.time = nn.Linear(6, 16)

    def forward(self, x, skip, embedding):
        x = torch.cat((x, skip), 1)
        h = self.conv1(F.silu(self.norm1(x)))
        if self.change == "upsampled":
            h = self.conv1(F.interpolate(F.silu(self.norm1(x)), scale_factor=2.0, mode="nearest"))
        h = h + self.time(embedding)[:, :, None, None]
        y = F.silu(self.norm2(h))
        if self.change == "scale of the sum":
            y = self.norm2(h) * (1 + h.mean((2, 3), keepdim=True))
        y = self.conv2(y)
        if self.change == "upsampled":
            return y
        y = y + self.shortcut(x)
        return y + F.silu(self.norm3(y)) * y.mean()


def given(batch: int = 2, height: int = 6, width: int = 5, dtype: torch.dtype = torch.bfloat16):
    maps = [torch.randn(batch, n, height, width).to(dtype) for n in (16, 8)]
    return *(t.to(memory_format=torch.channels_last) for t in maps), torch.randn(batch, 6).to(dtype)


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize(
    ("change", "added", "beside"),
    [("", 2, 1), ("wide shortcut", 2, 0), ("scale of the sum", 1, 1), ("upsampled", 0, 1)],
)
def test_a_residual_block(change, added, beside):
    torch.manual_seed(0)
    model = fastdiff.optimize(Resnet(change).eval().bfloat16())
    for size in ((2, 6, 5), (2, 6, 5), (3, 4, 8)):
        agrees(model, *given(*size))
    assert matches(model, "add_group_norm_silu") == [added] * 2
    assert matches(model, "side_by_side") == [beside] * 2
    assert ("cat_pooled" in called(model)) == (not beside)
    assert called(model).count("add_group_norm_silu") == added
    if change == "wide shortcut":
        assert "as well" in notes(model, "side_by_side")
    if change == "scale of the sum":
        assert "the sum is used before its norm is computed" in notes(model, "add_group_norm_silu")
    if change == "upsampled":
        assert "four 2x2 convolutions" in notes(model, "add_group_norm_silu")


@pytest.mark.usefixtures("as_on_gpu")
def test_maps_of_float32_are_left():
    torch.manual_seed(0)
    model = fastdiff.optimize(Resnet().eval())
    agrees(model, *given(dtype=torch.float32))
    assert matches(model, "add_group_norm_silu") == matches(model, "side_by_side") == [0]
    assert "need not be channels-last" in notes(model, "add_group_norm_silu")


def test_on_the_cpu_the_convolution_adds():
    torch.manual_seed(0)
    model = fastdiff.optimize(Resnet().eval().bfloat16())
    agrees(model, *given())
    assert matches(model, "add_group_norm_silu") == matches(model, "side_by_side") == [0]


@pytest.mark.usefixtures("as_on_gpu")
def test_a_unet_of_stable_diffusion():
    """Every sum of a convolution that a norm reads, and every concatenation."""
    model = unet(**SD).bfloat16()
    fast = fastdiff.optimize(model)
    inputs = [
        t.bfloat16() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in arguments("sd", 2, 8)
    ]
    agrees(fast, *inputs)
    (number,) = matches(fast, "add_group_norm_silu")
    resnets = 8
    assert number >= 2 * resnets - 2
    assert matches(fast, "side_by_side") == [4]
    assert called(fast).count("add_group_norm_silu") == number
