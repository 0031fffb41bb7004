"""The operators on a GPU against torch's: each is checked against float64 before it is timed, inside CUDA graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastdiff.bench.cases import Case, of
from fastdiff.bench.compare import check as check_results
from fastdiff.bench.compare import prepared
from fastdiff.bench.timing import Timing, interleave
from fastdiff.ops import OPS, TRITON_OPS
from fastdiff.runtime.choice import use

CALLS = 10  # in a graph
WARM = 3  # before it is recorded


def cases(small: bool = False) -> Iterator[Case]:
    """Of every op. small: sizes for a check under a memory checker, which is slow."""
    for op in TRITON_OPS:
        yield from of(op, "gpu-small" if small else "gpu")


def check(case: Case, device: str, backend: str = "triton") -> None:
    """Raises AssertionError if the operator errs more than twice as much as torch at the same dtype, plus rounding."""
    op: Any = OPS[case.op]
    ours, theirs, inputs = prepared(case, op, op.plain, device)
    with use(backend):
        check_results(case, ours, theirs, inputs)


def recorded(function: Callable[[], object], device: torch.device | str = "cuda") -> Callable[[], object]:
    """A replay of `CALLS` calls as one CUDA graph, so that what a launch costs on the CPU is not timed. Small inputs
    stay in the L2 cache, as they do within a network."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM):  # what compiles, or chooses, does so here
            function()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(CALLS):
            function()
    return graph.replay


Record = Callable[[Callable[[], object], "torch.device | str"], Callable[[], object]]


def time_case(
    case: Case,
    rounds: int = 30,
    *,
    device: torch.device | str = "cuda",
    backend: str = "triton",
    record: Record = recorded,
) -> dict[str, Timing]:
    """Seconds a call of the operator ("ours"), of the same in PyTorch ("torch") and, but for attention, which PyTorch
    has in one call, of that compiled ("compile"), in turns, each inside a CUDA graph.

    backend: of `fastdiff.use`, for ours: "auto" is what runs if nobody chooses. record: makes the graph.
    """
    op: Any = OPS[case.op]
    ours, theirs, inputs = prepared(case, op, op.plain, str(device))
    functions: dict[str, Callable[..., Any]] = {"ours": ours, "torch": theirs}
    if case.op != "attention":
        functions["compile"] = torch.compile(theirs)
    replays = {}
    for name, function in functions.items():
        with use(backend if name == "ours" else "reference"):
            replays[name] = record(functools.partial(function, **inputs), device)
    found = interleave(replays, rounds=rounds, device=device)
    return {name: Timing(*(seconds / CALLS for seconds in vars(each).values())) for name, each in found.items()}
