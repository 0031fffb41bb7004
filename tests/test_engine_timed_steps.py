"""The solver's step by CUDA's kernels or by Triton's, whichever is quicker. The CPU's steps stand in for both."""

import pytest
import torch

import fastdiff
from fastdiff.engine import timed_steps
from fastdiff.engine.steps import NativeSteps
from fastdiff.runtime import candidates, tuning

CPU = torch.device("cpu")


class Other(NativeSteps):
    """In the place of Triton's."""


class Wrong(NativeSteps):
    """With other numbers."""

    def add(self, kinds, numbers, outputs, coefficients):
        self.kept = 1.5 * coefficients
        super().add(kinds, numbers, outputs, self.kept)


class Timer:
    """Gives the seconds of one candidate after the other."""

    device_type = "cpu"

    def __init__(self, *seconds):
        self.seconds = list(seconds)

    def __call__(self, run, device):
        assert all(bool(torch.isfinite(result).all()) for result in run())
        return self.seconds.pop(0)


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """Installs a timer with these times of CUDA's steps and Triton's, which this class stands for."""

    def install(*seconds, body=Other):
        monkeypatch.setitem(timed_steps.BODIES, "triton", body)
        monkeypatch.setattr(tuning, "tuner", tuning.Tuner(timer=Timer(*seconds)))
        timed_steps.forget()

    monkeypatch.setenv("FASTDIFF_TUNE_FILE", str(tmp_path / "times.json"))
    monkeypatch.delenv("FASTDIFF_TUNE", raising=False)
    monkeypatch.setattr(timed_steps.triton, "unavailable", lambda: None)
    yield install
    timed_steps.forget()
    candidates.forget()


def chosen(made=NativeSteps, model=torch.float16, elements=48):
    return timed_steps.quickest(made, torch.float32, model, 2, elements, CPU)


@pytest.mark.parametrize("model", [torch.float16, torch.float32])
def test_the_quicker_one_is_taken(timed, model):
    timed(2e-6, 1e-6, 1e-6, 2e-6)
    assert chosen(model=model) is Other
    assert chosen(model=model) is Other  # which is known by now
    assert chosen(model=model, elements=50) is NativeSteps
    name = str(model).removeprefix("torch.")
    text = str(fastdiff.explain())
    assert f"solver's step 2x48 float32 for {name}: triton, timed" in text
    assert f"solver's step 2x50 float32 for {name}: cuda, timed" in text


def test_one_with_other_numbers_is_not_taken(timed):
    timed(2e-6, body=Wrong)
    with pytest.warns(UserWarning, match="triton is not taken"):
        assert chosen() is NativeSteps


def test_nothing_is_timed_where_there_is_no_choice(timed, monkeypatch):
    timed()
    assert chosen(made=Other) is Other  # Triton was insisted on, or there is no other
    assert chosen(elements=0) is NativeSteps
    monkeypatch.setattr(timed_steps.triton, "unavailable", lambda: "there is none")
    assert chosen() is NativeSteps
    assert "not triton: there is none" in str(fastdiff.explain())
    monkeypatch.setattr(timed_steps.triton, "unavailable", lambda: None)
    timed_steps.forget()
    monkeypatch.setenv("FASTDIFF_TUNE", "0")
    assert chosen() is NativeSteps
