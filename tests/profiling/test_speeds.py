"""What a call costs is measured in a share of a search's time, and not at length of what is far slower."""

import pytest
import torch
import toy

from fastdiff.profiling import Subject, speeds
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.settings import Axes


class Uneven(toy.Toy):
    """In bfloat16 four times as slow, in float16 twice as fast; `dtypes` has those of the calls."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __deepcopy__(self, memo):
        other = Uneven()
        other.dtypes = self.dtypes
        return other

    def forward(self, x, t, shift=None):
        out = super().forward(x.float(), t, None if shift is None else shift.float())
        self.dtypes.append(x.dtype)
        toy.CALLS[-1] *= {torch.bfloat16: 4, torch.float16: 0.5}.get(x.dtype, 1)
        return out.to(x.dtype)


def calibrated(monkeypatch, whole, **axes):
    clock, model = toy.Clock(monkeypatch), Uneven()
    subject = Subject("toy", model, toy.SHAPE, toy.SCHEDULE, "eps", toy.conditions)
    asked = Axes(**{"backends": ["auto"], "batches": [4], "precisions": ["float32"], **axes})
    found, kept = speeds.calibrate(Drawer(subject, 0), asked, 2.0, whole, lambda _: None)
    return found, kept, model.dtypes, len(clock.timed)


def test_what_is_far_slower_is_not_timed_at_length(monkeypatch):
    found, kept, dtypes, _ = calibrated(monkeypatch, 600.0, precisions=["float32", "bfloat16", "float16"])
    assert kept.precisions == ["float32", "float16"]
    assert found.left_out == {"bfloat16": "no faster here"}
    assert dtypes.count(torch.bfloat16) == 2 * speeds.WARM
    assert dtypes.count(torch.float16) > 6 * speeds.WARM
    half, whole = (found._call(speeds.replace(found.base, precision=p), "guided") for p in ("float16", "float32"))
    assert half == pytest.approx(whole / 2, rel=0.05)
    alone = found._call(speeds.replace(found.base, precision="float16"), "alone")  # which was not timed
    assert alone == pytest.approx(half / 2, rel=0.05)


def test_rounds_follow_the_time(monkeypatch):
    counts = [calibrated(monkeypatch, whole)[3] for whole in (1.0, 52.0, 1000.0)]
    assert counts[0] < counts[1] < counts[2]
    once = 2 * len(speeds.STEPS)
    assert counts[2] - counts[0] == (speeds.ROUNDS - 1) * once


@pytest.mark.parametrize("by", ["plain", "instructions"])
def test_a_precision_without_instructions_is_not_tried(by, monkeypatch):
    monkeypatch.setattr(speeds, "implementation", lambda word: by)
    found, kept, _, _ = calibrated(monkeypatch, 100.0, precisions=["float32", "int8"])
    assert kept.precisions == ["float32"]
    assert ("no instructions" in found.left_out["int8"]) == (by == "plain")
