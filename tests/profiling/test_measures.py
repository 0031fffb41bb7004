"""Distances picture by picture, the error of the reference, and the front."""

import math

import numpy as np
import pytest
import torch

from fastdiff.profiling import front as fronts
from fastdiff.profiling.measures import psnr, rms, rmse, ssim
from fastdiff.profiling.reference import estimate


def test_rmse_and_psnr():
    a, b = torch.zeros(2, 3, 8, 8), torch.stack([torch.full((3, 8, 8), 0.5), torch.zeros(3, 8, 8)])
    error = rmse(a, b)
    assert error.tolist() == [0.5, 0]
    assert psnr(error)[0] == pytest.approx(20 * math.log10(4))
    assert psnr(error)[1] == math.inf
    assert rms(error) == pytest.approx(0.5 / math.sqrt(2))
    with pytest.raises(ValueError, match="must be alike"):
        rmse(a, b[:1])


def test_ssim():
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    assert ssim(x, x) == pytest.approx(1)
    assert (ssim(x, -x) < 0).all()  # as negatives are, whatever the sign of their means
    assert np.isnan(ssim(x[..., :5, :5], x[..., :5, :5])).all()


@pytest.mark.parametrize("order", [1, 2])
def test_the_error_of_the_reference_is_what_is_left(order):
    exact, direction = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    runs = [exact + direction / n**order for n in (50, 100, 200)]
    error, observed = estimate(*runs)
    assert observed == pytest.approx(order, abs=1e-6)
    assert error == pytest.approx(rms(rmse(runs[-1], exact)), rel=1e-6)


def test_an_order_below_one_is_not_believed():
    x = torch.zeros(1, 1, 8, 8)
    error, observed = estimate(x, x + 0.1, x + 0.3)  # it gets worse: no sign of convergence
    assert observed == 1
    assert error == pytest.approx(0.2)
    assert estimate(x, x, x)[0] == 0


def row(name, seconds, rmse, similar=0.5):
    return {
        "slug": name, "label": name, "seconds": {"median": seconds}, "ssim": similar, "psnr": None,
        "rmse": None if rmse is None else {"value": rmse},
    }  # fmt: skip


ROWS = [row("a", 1, 0.5), row("b", 2, 0.2, 0.96), row("worse", 2.01, 0.3), row("same-time", 1.99, 0.21),
        row("c", 4, 0.1, 0.99), row("slow", 8, 0.1), row("noise", 1, None, None)]  # fmt: skip


def test_front():
    assert [r["slug"] for r in fronts.front(ROWS)] == ["a", "b", "c"]
    assert [r["slug"] for r in fronts.front(ROWS, "ssim")] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="unknown measure"):
        fronts.front(ROWS, "fid")


def test_pick():
    def picked(**options):
        return fronts.pick(ROWS, **options)[0]["slug"]

    assert picked(budget=3) == "b"
    assert picked(target=0.2) == "b"
    assert picked(target=0.15) == "c"
    assert picked() == "b"  # the first with an SSIM of 0.95
    assert fronts.pick(ROWS[:1])[0]["slug"] == "a"
    hair = [row("float32", 1, 0.2921), row("bfloat16", 7, 0.292), row("far", 0.5, 0.4)]
    assert fronts.pick(hair)[0]["slug"] == "float32"  # as good, and seven times as fast
    assert fronts.pick(hair, budget=8)[0]["slug"] == "float32"
    with pytest.raises(ValueError, match=r"no setting takes at most 0.5 s a sample; the fastest, a, takes 1 s"):
        picked(budget=0.5)
    with pytest.raises(ValueError, match=r"no setting has a RMSE .* of 0.01 or better; the best, c, has 0.1 in 4 s"):
        picked(target=0.01)
    with pytest.raises(ValueError, match="within 3 s"):
        picked(target=0.15, budget=3)


@pytest.mark.parametrize(("text", "seconds"), [("2s", 2), ("300ms", 0.3), ("1.5", 1.5), ("1m", 60), (0.2, 0.2)])
def test_times(text, seconds):
    assert fronts.parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "2h", "-1s", "0", "nan", "s"])
def test_bad_times(text):
    with pytest.raises(ValueError, match="a time must be"):
        fronts.parse_seconds(text)
