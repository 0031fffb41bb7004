"""Numbers among the arguments: those that choose what runs are constants, those that are computed with are captured
once, and both give the original's result."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from conftest import floor
from torch import nn

import fastdiff
from fastdiff.compiler import variant
from fastdiff.compiler.report import reports_of


class Net(nn.Module):
    """Three convolutions, and a way to use a number."""

    def __init__(self, way=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.named = nn.ModuleDict({str(n): block for n, block in enumerate(self.blocks)})
        self.table = {0: 1.0, 1: 2.0, 4: 3.0}
        self.way = way

    def forward(self, x, n):
        return self.way(self, self.blocks[0](x), n)


def skipping(model, x, skip):
    for n, block in enumerate(model.blocks):
        if n not in skip:
            x = x + block(x)
    return x


def agree(model, *arguments, **named):
    with torch.no_grad():
        expected = model._call_impl(*arguments, **named)
        found = model(*arguments, **named)
    rounding = 2 * floor(expected, torch.float32, terms=72)  # of both; a time of 981 may be a factor
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 + rounding)


CHOICES = {
    "==": lambda m, x, n: m.blocks[1](x) if n == 1 else x,
    "!=": lambda m, x, n: m.blocks[1](x) if n != 4 else x,
    ">": lambda m, x, n: m.blocks[1](x) if n > 1 else x,
    "<=": lambda m, x, n: m.blocks[1](x) if n <= 1 else x,
    "between": lambda m, x, n: m.blocks[1](x) if 0 < n < 4 else x,
    "truth": lambda m, x, n: m.blocks[1](x) if n else x,
    "not": lambda m, x, n: m.blocks[1](x) if not n else x,
    "%": lambda m, x, n: m.blocks[n % 3](x),
    "// ==": lambda m, x, n: x * 2 if n // 2 == 1 else x,
    "in a list": lambda m, x, n: x * 2 if n in [1, 4] else x,
    "in a tuple": lambda m, x, n: x * 2 if n in (1, 4) else x,
    "in a set": lambda m, x, n: x * 2 if n in {1, 4} else x,
    "in a range": lambda m, x, n: x * 2 if n in range(1, 3) else x,
    "not in": lambda m, x, n: x * 2 if n not in [1, 4] else x,
    "a constant in a list of it": lambda m, x, n: x * 2 if 4 in [n, n + 1] else x,
    "in a dictionary": lambda m, x, n: x * 2 if n in m.table else x,
    "a dictionary": lambda m, x, n: x * m.table.get(n, 5.0),
    "a dictionary by text": lambda m, x, n: x * {"a1": 2.0, "a4": 3.0}.get(f"a{n}", 5.0),
    "text in a list": lambda m, x, n: x * (2.0 if f"b{n:02d}" in ["b01", "b04"] else 3.0),
    "str": lambda m, x, n: x * {"1": 2.0, "4": 3.0}.get(str(n), 5.0),
    "%d": lambda m, x, n: x * {"1": 2.0, "4": 3.0}.get("%d" % n, 5.0),  # noqa: UP031
    "format": lambda m, x, n: x * {"1": 2.0, "4": 3.0}.get("{}".format(n), 5.0),  # noqa: UP032
    "repr": lambda m, x, n: x * len(repr(n)),
    "a module by text": lambda m, x, n: m.named[f"{n % 3}"](x),
    "getattr": lambda m, x, n: getattr(m, "blocks" if n > 1 else "named")["1" if n <= 1 else 1](x),
    "a module": lambda m, x, n: m.blocks[min(n, 2)](x),
    "modules up to": lambda m, x, n: nn.Sequential(*m.blocks[: min(n, 3)])(x) if n else x,
    "range": lambda m, x, n: sum((x for _ in range(n)), x),
    "list.index": lambda m, x, n: x * [0, 1, 2, 3, 4, 5, 7].index(n),
    "a list": lambda m, x, n: x * [1, 2, 3, 4, 5, 6, 7, 8][n],
    "slicing": lambda m, x, n: x[:, n:],
    "indexing": lambda m, x, n: x[:, n],
    "max": lambda m, x, n: x * max(n, 2) + min(n, 3),
    "bool": lambda m, x, n: x * 2 if bool(n) else x,
    "int": lambda m, x, n: x * 2 if int(n) in [1, 4] else x,
    "isinstance": lambda m, x, n: x * 2 if isinstance(n, int) else x * n,
    "type": lambda m, x, n: x * 2 if type(n) is int else x * n,
    "match": lambda m, x, n: x * 2 if (n, 1) == (4, 1) else x,
    "any": lambda m, x, n: x * 2 if any(n == each for each in (1, 4)) else x,
    "count": lambda m, x, n: x * [1, 4, 4].count(n),
    "roll": lambda m, x, n: x.roll(n, 2),
    "repeat": lambda m, x, n: x.repeat(1, 1, n + 1, 1),
    "new size": lambda m, x, n: torch.nn.functional.interpolate(x, size=(n + 2, 5)),
    "dim": lambda m, x, n: x.sum(n % 4),
    "arithmetic": lambda m, x, n: x * n + n**2 - n / 3 + (-n) // 2 + 2.0**-n,
    "a tensor": lambda m, x, n: x + torch.tensor(n) + torch.tensor([n]).float() + torch.full((1,), n),
    "arange": lambda m, x, n: x + torch.arange(n + 1).sum(),
    "nothing": lambda m, x, n: m.blocks[2](x),
}


@pytest.mark.parametrize("way", CHOICES)
def test_whole_numbers(way):
    model = fastdiff.optimize(Net(CHOICES[way]).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for n, size in ((1, 8), (4, 8), (0, 8), (4, 12), (2, 12), (7, 8), (1, 12)):
            agree(model, torch.randn(2, 8, size, size), n)


LISTS = ([1], [2], [], [0, 2], (0, 1), {1, 2}, {0: True}, [1], (), [0, 1, 2])


@pytest.mark.parametrize("named", [False, True])
def test_collections_of_numbers(named):
    model = fastdiff.optimize(Net(skipping).eval())
    for size in (8, 12, 8, 16):
        for skip in LISTS:
            x = torch.randn(1, 8, size, size)
            agree(model, x, **{"n": skip}) if named else agree(model, x, skip)


def embedded(model, x, t):
    """As diffusers' networks take a time."""
    if not torch.is_tensor(t):
        t = torch.tensor([t], dtype=torch.float64 if isinstance(t, float) else torch.int64, device=x.device)
    elif t.ndim == 0:
        t = t[None]
    t = t.expand(x.shape[0])
    return model.blocks[1](x) + torch.sin(t[:, None].float() / torch.arange(1, 9))[:, :, None, None]


TIMES = {
    "embedded": embedded,
    "a factor": lambda m, x, t: m.blocks[1](x) * t + (1 + t**2) ** -0.5,
    "karras": lambda m, x, t: m.blocks[1](x * (1 / (t**2 + 0.25) ** 0.5)) + torch.tensor(t).log() / 4,
    "full": lambda m, x, t: m.blocks[1](x) + torch.full((x.shape[0], 1, 1, 1), t / 1000),
    "by name": lambda m, x, t: embedded(m, x, t / 1000 * 999 + 1),
}
KINDS = {
    "int": lambda k: 981 - 40 * k,
    "float": lambda k: 14.6 / (k + 1),
    "np.int64": lambda k: np.int64(981 - 40 * k),
    "np.int32": lambda k: np.int32(981 - 40 * k),
    "np.float64": lambda k: np.float64(14.6 / (k + 1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", TIMES)
def test_times(use, kind):
    model = fastdiff.optimize(Net(TIMES[use]).eval())
    for size in (8, 12):
        for k in range(12):
            time, x = KINDS[kind](k), torch.randn(2, 8, size, size)
            agree(model, x, n=time) if use == "by name" else agree(model, x, time)
    reports = reports_of(list(model.parameters()))
    assert len(reports) <= 3  # with the first time as it is; with any time; with any size too
    assert all(report.fallback is None for report in reports)
    assert [report.calls for report in reports] == [1, 10, 12]


def test_numbers_of_numpy_that_are_no_numbers_of_python():
    """np.float32 is no float to isinstance, which 999.0 does not show, and is computed with in its own precision."""

    def split(model, x, t):
        return model.blocks[1](x) * (t if isinstance(t, float) else -t)

    model = fastdiff.optimize(Net(split).eval())
    with pytest.warns(UserWarning, match="runs as it was written where it is given numbers of NumPy"):
        agree(model, torch.randn(2, 8, 8, 8), np.float32(999))
    agree(model, torch.randn(2, 8, 8, 8), np.float32(3.75))
    assert "numbers of NumPy" in str(fastdiff.explain(model))
    model = fastdiff.optimize(Net(lambda m, x, t: m.blocks[1](x) * t).eval())
    for time in (999.0, 998.0, 3.75, 2.25):
        agree(model, torch.randn(2, 8, 8, 8), np.float32(time))
    assert len(reports_of(list(model.parameters()))) == 2
    agree(fastdiff.optimize(Net(skipping).eval()), torch.randn(1, 8, 8, 8), [np.int64(1)])


def test_an_argument_by_name_or_a_flag_needs_no_symbols():
    class Flagged(Net):
        def forward(self, x, mask=None, flag=True, scale=1):
            x = self.blocks[0](x) * scale
            return x if mask is None or not flag else x * mask

    model = fastdiff.optimize(Flagged().eval())
    x = torch.randn(2, 8, 8, 8)
    for named in ({}, {"flag": False}, {"flag": True}, {"mask": x}, {"mask": x, "flag": False}, {"scale": 2}):
        agree(model, x, **named)
    assert not any(report.dynamic for report in reports_of(list(model.parameters())))
    agree(model, torch.randn(2, 8, 12, 8), mask=torch.randn(2, 1, 12, 8))
    assert reports_of(list(model.parameters()))[-1].dynamic


def test_the_end_of_captures_is_said_once(monkeypatch):
    monkeypatch.setattr(variant, "STATES", 5)
    model = fastdiff.optimize(Net(lambda m, x, n: x * n["scale"]).eval())
    x = torch.randn(2, 8, 8, 8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n in range(9):
            agree(model, x, {"scale": 1 + n / 8})
    (message,) = [str(each.message) for each in said if "fastdiff" in str(each.message)]
    assert "Net was captured for 5 states" in message
    assert "Net" not in str(fastdiff.explain(model)).splitlines()[0]
    assert "was captured for 5 states of its arguments" in str(fastdiff.explain(model))
    assert len(reports_of(list(model.parameters()))) == 5
    for n in range(9):  # those that were captured stay fast
        agree(model, x, {"scale": 1 + n / 8})
    assert [report.calls for report in reports_of(list(model.parameters()))] == [2] * 5


def test_what_cannot_be_captured_runs_as_it_was_written():
    """Where sizes are symbols each size is captured by itself; else the original runs. PyTorch fails with both."""
    model = fastdiff.optimize(Net(lambda m, x, n: x + torch.randn(x.shape, generator=None) * 0).eval())
    for size in (8, 12, 16, 12):
        agree(model, torch.randn(2, 8, size, size), None)
    assert [report.calls for report in reports_of(list(model.parameters()))] == [1, 1, 1]
    model = fastdiff.optimize(Net(lambda m, x, n: x.permute(*range(x.ndim - 1, -1, -1))).eval())
    with pytest.warns(UserWarning, match="Net could not be captured with arguments of these shapes"):
        agree(model, torch.randn(2, 8, 8, 8), None)
    agree(model, torch.randn(2, 8, 8, 8), None)
    assert "could not be captured" in str(fastdiff.explain(model))


def test_few_captures_where_a_number_is_only_compared():
    """Each capture holds for all numbers that decide alike."""
    model = fastdiff.optimize(Net(lambda m, x, t: (m.blocks[1](x) if t > 500 else x) * t).eval())
    for time in range(981, 0, -40):
        agree(model, torch.randn(2, 8, 8, 8), time)
    assert len(reports_of(list(model.parameters()))) == 3


def test_errors_of_the_model_stay_its_own():
    model = fastdiff.optimize(Net(lambda m, x, n: x @ n).eval())
    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad(), pytest.raises(RuntimeError) as expected:
        model._call_impl(x, torch.randn(3, 3))
    with torch.no_grad(), pytest.raises(RuntimeError) as found:
        model(x, torch.randn(3, 3))
    assert str(found.value) == str(expected.value)
    agree(model, x, torch.randn(8, 3))
    assert reports_of(list(model.parameters()))[-1].calls == 1


def test_sizes_given_as_numbers():
    """As video networks take the height and width of their tokens: constants, with no call of the original."""

    def tokens(model, x, size):
        return model.blocks[1](x.flatten(2).unflatten(2, (size, -1))) / size

    model = fastdiff.optimize(Net(tokens).eval())
    for size in (8, 12, 16, 8, 12, 16):
        agree(model, torch.randn(2, 8, size, size), size)
    assert [report.calls for report in reports_of(list(model.parameters()))] == [2, 2, 2]
