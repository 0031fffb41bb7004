"""What a model writes into its own tensors comes out right, and leaves the rest of it fast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastdiff
from fastdiff.compiler.report import reports_of


def assigned(h, x):
    h[:, :8] = x[:, :8] * 2
    return h


def assigned_through_a_view(h, x):
    view = h[:, 4:12].transpose(1, 2)
    view[..., 0] = x[:, 0].transpose(1, 2).mean()
    return h + view.mean(), view


def assigned_to_parts(h, x):
    first, second = h.chunk(2, 1)
    first[:] = second
    second.mul_(3)
    return h


def assigned_from_itself(h, x):
    h[:, :4] = h[:, 4:8].flip(1)
    h[:, 8:12] = h[:, :4]
    return h


def read_before(h, x):
    before = h * 2
    view = h[:, :2]
    again = view + 1
    h[:, 1] = 0
    return before, again, view, h


def interleaved(h, x):  # as rotary embeddings are written
    out = torch.empty_like(h)
    out[..., 0::2] = h[..., 0::2] * 2 - h[..., 1::2]
    out[..., 1::2] = h[..., 0::2] + h[..., 1::2]
    return out


def masked(h, x):
    h[x[:, :16] > 0] = 0.5
    return h


def by_numbers(h, x):
    h[torch.arange(h.shape[0]), 3] = x[:, 0]
    h[..., -1] += 1
    return h


def accumulated(h, x):
    total = torch.zeros_like(h)
    for n in range(3):
        total += h * n
        total[:, n] -= x[:, n]
    return total


def views_between(h, x):
    flat = h.flatten(2)
    flat += 1
    h.mul_(2)
    flat[:, 0] = 3
    return h, flat


def two_makers(h, x):
    a, b = torch.zeros(2, 16, 4), torch.zeros(2, 16, 4)
    a[:, 0] = 1
    b[:, 1] = 2
    return a + h.mean(), b + h.mean(), torch.zeros(2, 16, 4)


def powers(h, x):
    h **= 2
    h //= 0.5
    h %= 3
    return h


def other_dtype(h, x):
    h += x[:, :16].double()
    h *= torch.tensor(2.0, dtype=torch.float64)
    return h


def filled(h, x):
    return torch.empty_like(h).fill_(2) + h, h.new_empty(h.shape).zero_(), h.clone().copy_(x[:, :16])


def into(h, x):
    out = torch.empty_like(h)
    torch.add(h, 1, out=out)
    return out * h


def flags(h, x):
    y = h + 1
    F.relu(y, True)
    F.silu(h, inplace=True)
    F.hardtanh(y, -1.0, 0.5, True)
    return h, y


def whole_numbers(h, x):
    mask = torch.ones(h.shape[-1], dtype=torch.bool)
    mask[2:] = False
    mask &= h.mean() < 1e9
    mask = mask & mask.flip(0) | mask
    return h.masked_fill(mask, 0), mask


def repeated(h, x):
    row = h.mean((2, 3), keepdim=True)
    wide = row.expand(-1, -1, h.shape[2], h.shape[3])
    row += 1
    return wide * h


def swapped(h, x):
    h[:, 0], h[:, 1] = h[:, 1].clone(), h[:, 0].clone()
    return h


WAYS = [
    assigned, assigned_through_a_view, assigned_to_parts, assigned_from_itself, read_before, interleaved, masked,
    by_numbers, accumulated, views_between, two_makers, powers, other_dtype, filled, into, flags, whole_numbers,
    repeated, swapped,
]  # fmt: skip


class Writing(nn.Module):
    def __init__(self, way) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 64, 3, padding=1)
        self.way = way

    def forward(self, x):
        found = self.way(self.conv(x), x)
        found = found if isinstance(found, tuple) else (found,)
        return self.last(F.silu(found[0])) if found[0].ndim == 4 else None, *found


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_written_in_place(way):
    model = fastdiff.optimize(Writing(way).eval())
    for batch, height, width in ((2, 8, 8), (2, 8, 8), (3, 12, 8), (2, 12, 16)):
        x = torch.randn(batch, 32, height, width)
        with torch.no_grad():
            expected = model._call_impl(x)
            for _ in range(2):  # what is written must not be seen in the next call
                for ours, theirs in zip(model(x), expected, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    reports = reports_of(list(model.parameters()))
    assert [report.fallback for report in reports] == [None] * len(reports)
    assert all({notes.name: notes.matches for notes in report.passes}["conv2d"] >= 1 for report in reports)
