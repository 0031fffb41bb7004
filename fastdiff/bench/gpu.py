"""The GPU kernels against torch's, on the device: each is checked against float64 before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastdiff.bench.cases import Case, of
from fastdiff.bench.compare import check as check_results
from fastdiff.bench.compare import prepared
from fastdiff.bench.timing import Timing
from fastdiff.ops import OPS, TRITON_OPS
from fastdiff.runtime.choice import use


def cases(small: bool = False) -> Iterator[Case]:
    """Of every op. small: sizes for a check under a memory checker, which is slow."""
    for op in TRITON_OPS:
        yield from of(op, "gpu-small" if small else "gpu")


def check(case: Case, device: str) -> None:
    """Raises AssertionError if the kernel errs more than twice as much as torch at the same dtype, plus rounding."""
    op: Any = OPS[case.op]
    ours, theirs, inputs = prepared(case, op, op.plain, device)
    with use("triton"):
        check_results(case, ours, theirs, inputs)


def time_case(case: Case, rounds: int = 30) -> dict[str, Timing]:
    """Seconds a call of the kernel ("ours"), of the same in PyTorch ("torch") and, but for attention, which PyTorch has
    in one call, of that compiled ("compile"), in turns. Needs a CUDA device."""
    op: Any = OPS[case.op]
    ours, theirs, inputs = prepared(case, op, op.plain, "cuda")
    functions: dict[str, Callable[..., Any]] = {"ours": ours, "torch": theirs}
    if case.op != "attention":
        functions["compile"] = torch.compile(theirs)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")  # no result may lie in the cache already
    with use("triton"):
        for function in functions.values():
            for _ in range(5):
                function(**inputs)
        for _ in range(rounds):
            for name, function in functions.items():
                flush.zero_()
                started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                started.record()
                function(**inputs)
                ended.record()
                ended.synchronize()
                seconds[name].append(started.elapsed_time(ended) / 1e3)
    quantiles = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    return {name: Timing(*torch.tensor(s).double().quantile(quantiles).tolist()) for name, s in seconds.items()}
