"""Operands of different dtypes give what PyTorch gives: no pass takes more than its operator does."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastdiff
from fastdiff.compiler.report import reports_of


class Attention(nn.Module):
    """Queries of the model's dtype, and a mask of any; spelled out or in one call."""

    def __init__(self, spelled_out: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj, self.spelled_out = nn.Linear(64, 64), spelled_out

    def forward(self, x, mask):
        q = self.proj(x).unflatten(-1, (4, 16)).transpose(1, 2)
        if not self.spelled_out:
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        weights = (q @ q.transpose(-1, -2) / 4 + mask).softmax(-1)
        return weights @ q.to(weights.dtype)


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("spelled_out", [False, True])
@pytest.mark.parametrize("mask", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_masks_of_another_dtype(dtype, mask, spelled_out):
    model = fastdiff.optimize(Attention(spelled_out).to(dtype).eval())
    for batch, tokens in ((2, 9), (2, 9), (3, 11), (1, 5)):
        x = torch.randn(batch, tokens, 64).to(dtype)
        given = torch.randn(batch, 1, tokens, tokens)
        given = given > -1 if mask is torch.bool else given.to(mask)
        with torch.no_grad():
            try:
                expected = model._call_impl(x, given)
            except RuntimeError:
                with pytest.raises(RuntimeError):
                    model(x, given)
                return
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = model(x, given)
        bound = 8 * torch.finfo(torch.float32 if dtype is torch.float64 else dtype).eps
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
    if mask is dtype or (mask is torch.bool and not spelled_out):
        reports = reports_of(list(model.parameters()))
        assert all({notes.name: notes.matches for notes in report.passes}["attention"] == 1 for report in reports)


class Mixed(nn.Module):
    """What follows layers and norms, of another dtype than theirs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(4, 64)
        self.linear, self.tokens = nn.Linear(64, 64), nn.LayerNorm(64, elementwise_affine=False)

    def forward(self, x, y):
        whole = torch.arange(-3, 4)
        h = self.conv(x) + y
        n = self.norm(x) * (1 + y.mean((2, 3), keepdim=True)) + y.mean((2, 3), keepdim=True)
        t = x.flatten(2).transpose(1, 2)
        row = y.mean((2, 3))[:, None]
        z = self.tokens(t) * (1 + row) + row
        r = self.tokens(t + row * self.linear(t).sin())
        gated = self.linear(t) * row + y.flatten(2).transpose(1, 2)
        return h, n, z, r, gated, whole * torch.sigmoid(whole), F.layer_norm(t.to(y.dtype), (64,))


@pytest.mark.parametrize("other", [torch.float64, *HALF])
def test_neighbours_of_another_dtype(other):
    model = fastdiff.optimize(Mixed().eval())
    for size in (8, 12, 16):
        x, y = torch.randn(2, 64, size, size), torch.randn(2, 64, size, size).to(other)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            for found, expected in zip(model(x, y), model._call_impl(x, y), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
