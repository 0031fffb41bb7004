"""Whatever the layout of the maps in between: strides of results, writes through views and the order of random numbers
are the original's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastdiff
from fastdiff.compiler.report import reports_of


class Net(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.end, self.conv = end, nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x):
        return self.end(self.conv(x), x)


ENDS = {
    "contiguous after channels-last": lambda h, x: h.to(memory_format=torch.channels_last).contiguous(),
    "an input made contiguous": lambda h, x: (h, x.contiguous()),
    "the same twice, with other strides": lambda h, x: (
        h.contiguous(), h.to(memory_format=torch.channels_last), h.to(memory_format=torch.channels_last).contiguous(),
    ),
    "a size computed with floats": lambda h, x: F.interpolate(h, scale_factor=(16 / x.shape[2], 32 / x.shape[3])),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_strides_of_results(end):
    torch.manual_seed(0)
    fast = fastdiff.optimize(Net(ENDS[end]).eval())
    for batch, height, width in ((2, 8, 8), (2, 12, 8), (3, 16, 12)):
        for x in (torch.randn(batch, 32, height, width), torch.randn(batch, 32, width, height).mT):
            with torch.no_grad():
                found, right = fast(x), fast._call_impl(x)
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4, check_stride=True)


def doubled(view):
    def end(h, x):
        view(h).mul_(2)
        return h + x

    return end


@pytest.mark.parametrize(
    "view",
    [
        lambda h: h.flatten(),
        lambda h: h.reshape(len(h), -1)[:, :300],
        lambda h: h.contiguous(),
        lambda h: h.view(len(h), -1),
        lambda h: h.ravel(),
        lambda h: h.unflatten(1, (4, 8))[:, 1],
        lambda h: h[:, 8:],
    ],
    ids=["flatten", "reshape", "contiguous", "view", "ravel", "unflatten", "index"],
)
def test_what_is_written_through_a_view_arrives(view):
    torch.manual_seed(0)
    fast = fastdiff.optimize(Net(doubled(view)).eval())
    for size in (8, 8, 12):
        x = torch.randn(2, 32, size, size)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), fast._call_impl(x), rtol=1e-4, atol=1e-4, check_stride=True)
    assert all(report.fallback is None for report in reports_of([*fast.parameters()]))


@pytest.mark.parametrize(
    "end",
    [
        lambda h, x: F.dropout(h, 0.5, training=True),
        lambda h, x: h + torch.randn_like(h),
        lambda h, x: h * torch.empty_like(h).bernoulli_(0.5),
        lambda h, x: F.dropout(h, 0.5, True, True) + x,
    ],
    ids=["dropout", "randn_like", "bernoulli_", "dropout in place"],
)
def test_a_seed_gives_the_numbers_of_the_original(end):
    torch.manual_seed(0)
    fast, x = fastdiff.optimize(Net(end).eval()), torch.randn(2, 32, 8, 8)
    for seed in range(3):
        with torch.no_grad():
            torch.manual_seed(seed)
            found = fast(x)
            torch.manual_seed(seed)
            right = fast._call_impl(x)
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


class Attended(nn.Module):
    """A map that is a view of tokens, as after attention: with one picture its first stride is PyTorch's whim, and
    whether what follows is channels-last hangs on it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 64, 3, padding=1), nn.Conv2d(64, 4, 3, padding=1)
        self.query = nn.Linear(64, 64)

    def forward(self, x):
        h = self.first(x)
        tokens = self.query(h.flatten(2).transpose(1, 2))
        image = tokens.transpose(1, 2).reshape(h.shape)
        h = (image + h) / 1.5
        nearest = F.interpolate(h, scale_factor=2.0)
        return self.last(h), h, image, self.last(image), nearest, F.group_norm(h, 8), h.chunk(2, 1)[1], image * 2, h + h


@pytest.mark.parametrize("sizes", [((1, 8), (1, 20), (2, 12)), ((2, 8), (1, 20), (3, 12), (1, 8))], ids=["one", "two"])
def test_strides_with_one_picture(sizes):
    model = fastdiff.optimize(Attended().eval())
    with torch.no_grad():
        for batch, size in sizes:
            x = torch.randn(batch, 4, size, size)
            for found, right in zip(model(x), model._call_impl(x), strict=True):
                assert found.stride() == right.stride()
                torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
