"""Tiles and plans that are candidates on a GPU: right in the interpreter, checked and timed by a stand-in."""

from __future__ import annotations

import itertools
import json
import warnings
from typing import Any
from unittest import mock

import torch
from stand_in_device import Device

import fastdiff
from fastdiff.kernels import attention as kernels
from fastdiff.kernels.attention import attention_backward, attention_forward
from fastdiff.kernels.attention.tiles import TIMED, choose, widths
from fastdiff.ops import deciding
from fastdiff.runtime import agreement, candidates, device, kept_times, tuning
from fastdiff.runtime.triton import precision

H100 = device.Device("sm_90", 132, 50 << 20, "sm_90")
attention, group_norm_silu = fastdiff.ops.attention, fastdiff.ops.group_norm_silu


class Timer(Device):
    """Every call takes half as long as the one before."""

    def __call__(self, run: Any, device: torch.device) -> float:
        run()
        self.timed.append("")
        return 0.5 ** len(self.timed)


def backward(setting: str) -> None:
    """A backward call times the tiles of dq, dkv unless FASTDIFF_TUNE=0, and keeps the times; another call does not."""
    timer = Timer()
    tuning.tuner = timer.tuner()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 64) for _ in range(3))
    out, lse = attention_forward(q, k, v)
    assert not timer.timed
    first = attention_backward(torch.ones_like(out), q, k, v, out, lse)
    count = len(timer.timed)
    assert (count >= 3) == (setting != "0"), (count, candidates.lines())
    if setting != "0":
        kept = json.loads(kept_times.path().read_text())
        assert {key.split("attention ")[1].split()[0] for key in kept} == {"dq", "dkv"}
        assert any("timed in" in line for line in candidates.lines())
    again = attention_backward(torch.ones_like(out), q, k, v, out, lse)
    assert len(timer.timed) == count
    for x, y in zip(first, again):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def tiles() -> None:
    """Every tile of the forward pass that is a candidate or a default on an H100, with 77 and 128 keys."""
    torch.manual_seed(0)
    for dim, keys in itertools.product((40, 64, 72, 80, 96, 128, 160), (77, 128)):
        a = attention.Arguments(*(torch.randn(1, 1, n, dim, dtype=torch.float16) for n in (70, keys, keys)))
        exact, theirs = (attention.reference(given)[0] for given in (agreement.widened(a), a))
        names: dict[str, int] = dict(queries=70, keys=keys, heads=1, available=132)
        chosen = choose("forward", "sm_90", "half", dim, **names)
        wide = choose("forward", "sm_90", "half", dim)
        for tile in {chosen, wide, *(t for most, t in TIMED["sm_90", "half"] if sum(widths(dim)) <= most)}:
            ours, _ = attention_forward(*a[:3], tile=tile)
            assert agreement.disagreement(ours, theirs, exact) is None, (dim, keys, tile)


@fastdiff.use("triton")
def operators() -> None:
    """Candidates of the operators agree, and the quickest is decided on."""
    torch.manual_seed(0)
    half = torch.float16
    q = torch.randn(1, 2, 20, 40, dtype=half)
    image = torch.randn(1, 64, 8, 8, dtype=half)
    wide = torch.randn(1, 32, 32, 36, dtype=half).to(memory_format=torch.channels_last)
    add = fastdiff.ops.add_group_norm_silu
    cases: list[tuple[Any, Any, int]] = [
        (attention, attention.Arguments(q, q, q), 8),
        (attention, attention.Arguments(q, q, q, torch.rand(20, 20) < 0.7), 2),
        (group_norm_silu, group_norm_silu.Arguments(image, 4), 4),
        (group_norm_silu, group_norm_silu.Arguments(image.to(memory_format=torch.channels_last), 4), 4),
        (group_norm_silu, group_norm_silu.Arguments(wide, 4, skip=wide), 3),
        (add, add.Arguments(wide, 4, residual=wide), 4),
        (group_norm_silu, group_norm_silu.Arguments(image.view(1, 64, 2, 4, 8), 4), 4),
        (fastdiff.ops.ada_layer_norm, fastdiff.ops.ada_layer_norm.Arguments(q[0], q[0], q[0]), 5),
        (
            fastdiff.ops.residual_ada_layer_norm,
            fastdiff.ops.residual_ada_layer_norm.Arguments(q[0], q[0], q[0][:, :1]),
            5,
        ),
    ]
    with mock.patch.object(device, "ABSENT", H100):
        for op, a, count in cases:
            found = op.candidates(a)
            assert len(found) == count == len({c.name for c in found}), [c.name for c in found]
            timer = Timer()
            tuning.tuner = timer.tuner()
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # that one is wrong
                chosen = op.decide(a)
            assert (chosen.name, chosen.settled, len(timer.timed)) == (found[-1].name, True, count), candidates.lines()
            assert op.decide(a) is chosen
            assert len(timer.timed) == count
            result = next(agreement.tensors(op.by_candidate(a)))
            torch.testing.assert_close(result, next(agreement.tensors(op.reference(a))), rtol=1e-2, atol=1e-2)


@fastdiff.use("triton")
def wrong_tile() -> None:
    """A tile that gives wrong numbers, as one did on an H100 with 77 keys, is dropped, with a warning and a line."""
    q, k = torch.randn(1, 1, 20, 40, dtype=torch.float16), torch.randn(1, 1, 77, 40, dtype=torch.float16)
    a = attention.Arguments(q, k, k)
    bad = TIMED["sm_90", "half"][0][1]

    class WithAWrongTile(kernels.Forward):
        def __init__(self, *args: Any, tile: Any = None, **options: Any) -> None:
            super().__init__(*args, tile=tile, **options)
            self.wrong = tile == bad

        def __call__(self, *args: Any) -> Any:
            out, lse = super().__call__(*args)
            return (out + 0.7 * (torch.arange(20) == 3)[:, None].half() if self.wrong else out), lse

    tuning.tuner = Timer().tuner()
    with (
        mock.patch.object(device, "ABSENT", H100),
        mock.patch.object(kernels, "Forward", WithAWrongTile),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        assert attention.decide(a).name != f"triton {bad.said}"
    assert [f"triton {bad.said} is not taken" in str(w.message) for w in caught] == [True]
    (line,) = candidates.lines()
    assert f"not triton {bad.said}: its results are wrong: error " in line
    deciding.forget()
    assert precision() == "ieee"
