"""What a worker of bench_models.py tells of a model besides the time of a call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from engines import Plain
from model_rows import SIDES, other_inputs
from torch import Tensor, nn

import fastdiff
from fastdiff.bench.shares import shares
from fastdiff.bench.suites import ROW_NAMES
from fastdiff.bench.timing import timed
from fastdiff.bench.turns import seconds_a_call
from fastdiff.schedules import VPDiscrete

STEPS = 20
LOOPS = ("small", "sd")  # rows whose loop is timed


class Conditional(nn.Module):
    """The network of a row with the call of `fastdiff.sample`."""

    def __init__(self, network: Plain) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.network(x, t) if context is None else self.network(x, t, context)


def more_of(
    row: str, name: str, kept: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Answers by their words, for `serve`. kept["call"]: the engine's call, with its `model` and `inputs` where it is
    PyTorch's; {} where there is nothing to tell."""
    row = ROW_NAMES.get(row, row)

    def launched() -> dict[str, Any]:
        """Without CUDA graphs, as where none can be made."""
        if device.type != "cuda":
            return {}
        before = os.environ.get("FASTDIFF_GRAPH")
        os.environ["FASTDIFF_GRAPH"] = "0"
        try:
            return {"seconds": seconds_a_call(kept["call"], device)}
        finally:
            os.environ.pop("FASTDIFF_GRAPH")
            if before is not None:
                os.environ["FASTDIFF_GRAPH"] = before

    def other() -> dict[str, Any]:
        """The first call of another resolution."""
        inputs = other_inputs(row, device, dtype)
        with timed(device) as elapsed:
            kept["call"].model(*inputs)
        return {"seconds": elapsed.seconds, "side": SIDES[row][1]}

    def loop() -> dict[str, Any]:
        """20 guided steps of one sample fewer than the network's batch holds rows for, so that its calls are the same
        as those that were timed."""
        if row not in LOOPS:
            return {}
        x, *rest = kept["call"].inputs
        half = len(x) // 2
        context = rest[1][:half] if len(rest) > 1 else None
        conditions = {} if context is None else {"context": context}
        network = Conditional(kept["call"].model)

        def run() -> Tensor:
            return fastdiff.sample(
                network, x[:half], schedule=VPDiscrete.scaled_linear(), prediction="eps", solver="dpmpp-2m",
                steps=STEPS, guidance=7.5, cond=conditions, uncond=conditions, seed=0,
            )  # fmt: skip

        run()  # traces the solver, and records the graph
        return {"seconds": seconds_a_call(run, device), "steps": STEPS}

    def kernels() -> dict[str, Any]:
        return shares(kept["call"], device)

    return {"launched": launched, "loop": loop, "other": other, "shares": kernels} if name != "expected" else {}
