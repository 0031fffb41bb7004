"""The compilations of linear_combine's kernel that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from ..ahead_of_time import costs
from ..ahead_of_time.catalogue import TYPES, Entry, constant, tensor
from ..ahead_of_time.compile import Launch, launches
from .forward import launch_step

SHAPE = (8, 4, 128, 128)


def step(target: str, dtype: str, outputs: int, noisy: bool) -> Launch:
    """A step of three inputs for a network of one of TYPES, with noise among the inputs or not."""
    state = torch.promote_types(TYPES[dtype], torch.float32)
    table, keys, broken, coefficients = (
        torch.empty(64, dtype=kind, device="meta") for kind in (torch.int64, torch.int64, torch.int32, state)
    )
    (found,) = launches(
        target, launch_step, table, coefficients, keys, broken, *[tensor(dtype, *SHAPE)] * 2, batch=8,
        elements=4 * 128 * 128, num_inputs=3, num_outputs=outputs, state=state, noisy=noisy,
    )  # fmt: skip
    return found


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target."""
    for dtype, outputs, noisy in itertools.product(TYPES, (1, 2, 4, 8), (False, True)):
        size = TYPES[dtype].itemsize
        state = max(4, size)
        written = [state] * outputs + [size] * (size != state)  # the network's input in its own type as well
        cost = costs.linear_combine(8 * 4 * 128 * 128, [state, state, size], written, noises=noisy)
        detail, usual = f"3 to {outputs}" + " noise" * noisy, outputs <= 2 and dtype != "fp64"
        launch = step(target, dtype, outputs, noisy)
        yield Entry("step", dtype, detail, usual, launch, "8x4x128x128", constant(cost))
