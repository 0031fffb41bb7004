"""The sampling loop with the solver's steps in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

import fastdiff
from fastdiff.engine import loop, steps


def model(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x)


def samples() -> None:
    """The bits of the reference."""
    steps.choose = lambda device: (steps.TritonSteps, "")
    for solver, dtype, size in [
        ("dpmpp-2m", torch.float32, 7),
        ("ddpm", torch.float16, 11),
        ("unipc-2", torch.float64, 9),
    ]:
        options = dict(schedule="linear", prediction="eps", solver=solver, steps=4, seed=2**63 + 5)
        x = torch.randn(2, 3, size, 15).to(dtype)
        loop.choose_engine = lambda p, x: "device"
        ours = fastdiff.sample(model, x, **options)
        loop.choose_engine = lambda p, x: "reference"
        assert torch.equal(ours, fastdiff.sample(model, x, **options)), solver
