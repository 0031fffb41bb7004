"""Every spelling of sizes gives the original's result, with its strides, at the first size and at any other."""

from __future__ import annotations

import warnings

import pytest
import torch
from compiler.size_spellings import SPELLINGS
from torch import nn

import fastdiff
from fastdiff.compiler.report import reports_of

SIZES = ((2, 8, 8), (3, 12, 8), (2, 16, 12))


class Spelled(nn.Module):
    """A convolution, and its result spelled out."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(64, 64, 3, padding=1)
        self.spelling = SPELLINGS[spelling]

    def forward(self, x):
        x = self.conv(x)
        return self.spelling(x.flatten(2) * 2, x)


def agree(model, *inputs):
    """The optimized model gives the original's result: values, shape, dtype and strides."""
    with torch.no_grad():
        expected = model._call_impl(*inputs)
        found = model(*inputs)
    assert found.shape == expected.shape
    assert found.stride() == expected.stride()
    unit = 1 + float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * unit)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_sizes_in_every_spelling(spelling):
    model = fastdiff.optimize(Spelled(spelling).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch, height, width in SIZES:
            agree(model, torch.randn(batch, 64, height, width))
    reports = reports_of(list(model.parameters()))
    assert len(reports) <= 3
    assert all(report.fallback is None for report in reports if "empty" not in spelling)


VIEWS = {
    "video": lambda x: x[None].permute(0, 2, 1, 3, 4),  # (B, C, F, H, W), as video U-Nets return
    "video, wide": lambda x: x[None].transpose(1, 2).contiguous(memory_format=torch.channels_last_3d),
    "one more dimension": lambda x: x[:, None, :, None].permute(3, 0, 4, 1, 2, 5),
    "a part": lambda x: x[:, 1:5, ::2],
    "reversed": lambda x: x.permute(3, 2, 1, 0),
    "a column": lambda x: x[..., 0],
    "repeated": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 5),
    "wide": lambda x: x.contiguous(memory_format=torch.channels_last),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "read": lambda x: x.as_strided((4, 8), (8, 1), 3),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.flatten(2).unflatten(-1, (-1, 2)))),
    "other dtype": lambda x: x.view(torch.int64).shape[-1] * x,
}


class Viewed(nn.Module):
    """A convolution, and a view of its result."""

    def __init__(self, view: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 64, 3, padding=1)
        self.view = VIEWS[view]

    def forward(self, x):
        return self.view(self.conv(x))


@pytest.mark.parametrize("view", VIEWS)
def test_strides_are_the_originals(view):
    model = fastdiff.optimize(Viewed(view).eval())
    for batch, height, width in ((4, 64, 64), (2, 16, 32), (4, 8, 12)):
        agree(model, torch.randn(batch, 32, height, width))
    assert all(report.fallback is None for report in reports_of(list(model.parameters())))


def test_memory_beside_a_view_is_left_to_the_original():
    class Beside(Viewed):
        def forward(self, x):
            return self.conv(x)[:, 1:].as_strided((3, 3), (5, 1), 0)

    model = fastdiff.optimize(Beside("read").eval())
    agree(model, torch.randn(2, 32, 8, 8))
    (report,) = reports_of(list(model.parameters()))
    assert "looks at the memory beside" in report.fallback


class Small(nn.Module):
    """A convolution of 64 channels of the image's size: 20,480 numbers are 320 pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 64, 3, padding=1), nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, x):
        return self.last(torch.nn.functional.silu(self.first(x)))


@pytest.mark.parametrize(
    ("sizes", "graphs"),
    [([(8, 8), (16, 16), (12, 8)], 3), ([(24, 16), (20, 20), (24, 24)], 3), ([(8, 8), (16, 16), (24, 16)], 4)],
    ids=["small", "large", "both"],
)
def test_a_batch_of_one_among_the_sizes(sizes, graphs):
    """Sizes on both sides of where PyTorch runs another convolution are one graph more."""
    model = fastdiff.optimize(Small().eval())
    for batch in (2, 1):
        for size in sizes:
            agree(model, torch.randn(batch, 4, *size))
            agree(model, torch.randn(3 - batch, 4, *size))
    reports = reports_of([*model.parameters()])
    assert len(reports) <= graphs
    assert all(report.fallback is None for report in reports)
