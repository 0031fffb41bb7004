"""Tiles that are timed."""

from __future__ import annotations

import warnings

import torch

from fastdiff.kernels import tuning
from fastdiff.kernels.attention import attention_backward, attention_forward


def times(least: str, most: str, warning: str = "") -> None:
    """A forward and a backward call time between `least` and `most` tiles, and warn of what is given, if anything."""
    timed = []
    seconds = tuning._seconds
    tuning._seconds = lambda run, device: timed.append(1) or seconds(run, device)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 160) for _ in range(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        out, lse = attention_forward(q, k, v)
        attention_backward(torch.ones_like(out), q, k, v, out, lse)
    count = len(timed)
    assert int(least) <= count <= int(most), count
    assert bool(caught) == bool(warning), caught
    assert all(warning in str(w.message) for w in caught), caught
    again, _ = attention_forward(q, k, v)
    assert len(timed) == count
    assert torch.equal(out, again)
