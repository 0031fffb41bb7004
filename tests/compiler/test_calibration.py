"""`fastdiff.caching.calibrate`: which calls of a run should be full."""

import itertools

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.caching import Caching, calibrate
from fastdiff.compiler.calibration import Recorder, by_count, by_threshold
from fastdiff.models.unet import UNet, UNetConfig


@pytest.fixture(scope="module")
def fast():
    torch.manual_seed(0)
    model = UNet(UNetConfig((16, 32), 1, (), embedding_channels=16, groups=4)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))  # the output layer begins at zero
    return fastdiff.optimize(model, reuse="deep:2")


def loop(model, calls=6, batch=8, run=0):
    """A run in which the time hardly falls, and the picture stays for half of the calls and then changes at each."""
    generator = torch.Generator().manual_seed(run)
    x, results = torch.randn(batch, 3, 8, 8, generator=generator), []
    with torch.no_grad():
        for call in range(calls):
            if call >= calls // 2:
                x = x + torch.randn(batch, 3, 8, 8, generator=generator)
            results.append(model(x, torch.full((batch,), 500.0 - call / 1000)))
    return results


def test_full_calls_are_where_the_features_change(fast):
    rule = calibrate(fast, lambda: loop(fast), full=4)
    assert rule == Caching("deep", full=(0, 3, 4, 5))
    assert Caching.parse(str(rule)) == rule
    assert calibrate(fast, lambda: loop(fast), threshold=0.1) == rule


def test_the_model_follows_it(fast):
    calibrate(fast, lambda: [loop(fast, run=run) for run in range(2)], full=4)
    branches = fast._compiled_call_impl.branches
    before = branches.reused
    close = [torch.allclose(a, b, rtol=0, atol=0.01) for a, b in zip(loop(fast), loop(fast._call_impl), strict=True)]
    assert all(close)
    assert branches.reused - before == 2


def test_few_samples_and_bad_arguments_are_said(fast):
    with pytest.warns(UserWarning, match="the calibration saw 2 samples; fewer than 8 say little"):
        calibrate(fast, lambda: loop(fast, batch=2), full=2)
    with pytest.raises(ValueError, match="runs of at least 3 calls, got 2"):
        calibrate(fast, lambda: loop(fast, calls=2), full=2)
    with pytest.raises(ValueError, match="must have as many calls"):
        calibrate(fast, lambda: (loop(fast, calls=4), loop(fast, calls=6)), full=2)
    with pytest.raises(ValueError, match="got no call"):
        calibrate(fast, lambda: None, full=2)
    with pytest.raises(ValueError, match="full must be at most the 6 calls"):
        calibrate(fast, lambda: loop(fast), full=7)
    with pytest.raises(ValueError, match="either full or a threshold"):
        calibrate(fast, lambda: loop(fast))
    with pytest.raises(TypeError, match=r"takes what fastdiff.optimize\(model, reuse=...\) made"):
        calibrate(nn.Linear(2, 2), lambda: None, full=2)


def test_the_schedule_is_the_best_of_all():
    changes = torch.rand(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def cost(full):
        last = [max(call for call in full if call <= at) for at in range(7)]
        return sum(float(changes[i, j]) ** 2 for j, i in enumerate(last) if i != j)

    for count in range(1, 8):
        best = min(((0, *others) for others in itertools.combinations(range(1, 7), count - 1)), key=cost)
        assert by_count(changes, count) == best
    assert by_threshold(changes, 2.0) == (0,)
    assert by_threshold(changes, 0.0) == tuple(range(7))


def test_changes_are_relative_and_over_all_branches():
    recorder = Recorder()
    branches = type("Branch", (), {})(), type("Branch", (), {})()
    for value in (1.0, 2.0, 4.0):
        for branch in branches:
            recorder.add(branch, torch.full((2, 3), value))
    assert recorder.samples == 4
    expected = torch.tensor([[0, 0.5, 0.75], [1, 0, 0.5], [3, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(recorder.changes(), expected)
