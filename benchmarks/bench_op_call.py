"""What Python costs in a call of an operator on a GPU: from the call to Triton's launcher, in microseconds.

python benchmarks/bench_op_call.py

No GPU is needed. Tensors on the CPU stand for such on a GPU, and a function that only counts stands for the launcher:
all that runs in Python before the launcher is timed, with the allocation of results. Not in it are the two questions by
which a call finds that it is on a GPU, the launcher itself, and what an allocation on a GPU costs more.

Each call is checked first: the launcher gets what Triton's own path gives it. "anew" is the call as if nothing were
kept of others, by Triton's own path. "torch" is a call of an operator of PyTorch that does as much, on the CPU with the
same few numbers, with its work, in the same loop. linear has no kernel of ours on a GPU: its call ends in torch's.
"""

from __future__ import annotations

import copy
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from fastdiff import ops  # noqa: E402
from fastdiff.kernels.ahead_of_time.stand_in import stand_in  # noqa: E402
from fastdiff.runtime import choice  # noqa: E402

ROUNDS, CALLS = 40, 100


def half(*shape: int) -> Tensor:
    """Random numbers."""
    return torch.randn(shape, dtype=torch.float16)


def as_on_gpu(op: Any) -> Any:
    """The operator, with the way that calls on a GPU take."""
    found = copy.copy(op)
    found.run = lambda a, inplace=False: found.calls.run(a, found.tensors(a), inplace)
    return found


def rows() -> list[tuple[str, Any, Callable[[Any], object], Callable[[], object]]]:
    """Name, operator, a call of it, and torch's."""
    x, row, vector, image = half(2, 4, 64), half(2, 1, 64), half(64), half(2, 64, 8, 8)
    large = half(1, 64, 128, 128)
    q = half(2, 16, 4, 40).transpose(1, 2)
    mask = torch.zeros(16, 128, dtype=torch.float16)
    keys = half(2, 128, 4, 40).transpose(1, 2)
    a, weight, bias = torch.randn(1, 4, 8), torch.randn(8, 8), torch.randn(8)

    def norm() -> Tensor:
        return F.layer_norm(x, (64,), vector, vector)

    def groups() -> Tensor:
        return F.group_norm(image, 32, vector, vector)

    def attention() -> Tensor:
        return F.scaled_dot_product_attention(q, q, q)

    return [
        ("ada_layer_norm", ops.ada_layer_norm, lambda op: op(x, row, row, weight=vector, bias=vector), norm),
        ("residual_ada_layer_norm", ops.residual_ada_layer_norm, lambda op: op(x, x, row, row, row), norm),
        ("group_norm_silu", ops.group_norm_silu, lambda op: op(image, 32, vector, vector), groups),
        ("group_norm_silu, two launches", ops.group_norm_silu, lambda op: op(large, 32, vector, vector), groups),
        ("attention", ops.attention, lambda op: op(q, q, q), attention),
        ("attention, masked", ops.attention, lambda op: op(q, keys, keys, mask=mask), attention),
        ("linear_combine", ops.linear_combine, lambda op: op([[0.5, 0.25]], [x, x]), lambda: torch.add(x, x, alpha=2)),
        ("linear", ops.linear, lambda op: op(a, weight, bias), lambda: F.linear(a, weight, bias)),
    ]


def anew(call: Callable[[Any], object], op: Any) -> None:
    """The call, as if there had been none before."""
    op.calls.clear()
    call(op)


def pointers(launch: tuple[Any, ...]) -> tuple[Any, ...]:
    """A launch's grid, stream, function, metadata and numbers; of pointers that they are there."""
    values = (v.data_ptr() if isinstance(v, Tensor) else v for v in launch[9:])
    return (*launch[:6], *("pointer" if isinstance(v, int) and v > 1 << 20 else v for v in values))


def main() -> None:
    """Check, time in turns, print."""
    torch.set_num_threads(1)
    launched: list[tuple[Any, ...]] = []
    counting = [0]

    def launcher(*arguments: Any) -> None:
        counting[0] += 1
        if recording:
            launched.append(arguments)

    with (
        stand_in("sm_90", launcher),
        mock.patch.object(choice, "_chosen", "triton"),
        mock.patch.object(choice, "out_of_reach", return_value=None),
        torch.no_grad(),
    ):
        print(f"{'us a call: median of ' + str(ROUNDS):34} {'kept':>8} {'least':>8} {'anew':>8} {'torch':>8}  launches")
        for name, op, call, theirs in rows():
            op = as_on_gpu(op)
            found = []
            recording = True
            for _ in range(2):
                launched.clear()
                call(op)
                found.append(list(map(pointers, launched)))
            assert found[0] == found[1], f"{name}: {found}"
            recording, times = False, {}

            for _ in range(ROUNDS):
                for what, run, count in (
                    ("kept", functools.partial(call, op), CALLS), ("anew", functools.partial(anew, call, op), 5),
                    ("torch", theirs, CALLS),
                ):  # fmt: skip
                    run()
                    start = time.perf_counter()
                    for _ in range(count):
                        run()
                    times.setdefault(what, []).append((time.perf_counter() - start) / count * 1e6)
            median = {what: statistics.median(values) for what, values in times.items()}
            print(
                f"{name:34} {median['kept']:8.1f} {min(times['kept']):8.1f} {median['anew']:8.1f} "
                f"{median['torch']:8.1f}  {len(found[1])}"
            )


if __name__ == "__main__":
    main()
