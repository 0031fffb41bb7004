"""A sweep of small calls: every tile of attention and of its gradients is right in the interpreter."""

from __future__ import annotations

from typing import Any

import torch

import fastdiff
from fastdiff.bench import cases, sweep
from fastdiff.bench.measured import MeasuredCase


class Timer:
    """Every call takes a microsecond."""

    device_type = "cpu"

    def __call__(self, run: Any, device: torch.device) -> float:
        return 1e-6


@fastdiff.use("triton")
def measures() -> None:
    case = next(c for c in cases.of("attention", "gpu-small") if c.dtype == torch.float16)
    sweep.cases = lambda: [(part, case) for part in ("", "dq", "dkv")]
    sweep.ceilings = lambda device, timer: {}
    found = sweep.run([], torch.device("cpu"), timer=Timer(), warm=lambda *args, **options: {}, say=lambda text: None)
    by_part: dict[str, MeasuredCase] = {measured.part: measured for measured in found.cases}
    for measured in found.cases:
        # PyTorch's attention on a GPU is called by name, which a CPU has not.
        wrong = {n: why for n, why in measured.failed.items() if n not in ("cudnn", "flash", "efficient")}
        assert not wrong, wrong
        assert all(time.fault is None for time in measured.times.values())
    assert {"torch", "triton", "triton 128x64/8/3", "triton 64x32/4/4"} <= set(by_part[""].times)
    assert len(by_part["dq"].times) >= 10
    assert "triton 64x64/8/3 apart" in by_part["dkv"].times
    assert by_part["dq"].features == {"dim": 40, "queries": 40, "keys": 33}
