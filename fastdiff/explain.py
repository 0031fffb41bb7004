"""Which implementation runs, and why not another: `fastdiff.explain`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.compiler.explain import explain as explain_model
from fastdiff.compiler.explain import is_fast
from fastdiff.engine import steps
from fastdiff.ops import OPS, conv2d_algorithms
from fastdiff.runtime import choice, graphs, triton
from fastdiff.runtime.native import core

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# The smallest arguments of each op that its kernels take, from a function that makes a tensor of a shape.
_ARGUMENTS: dict[str, Callable[[Callable[..., Tensor]], tuple[Any, ...]]] = {
    "ada_layer_norm": lambda make: (make(1, 2, 8), make(1, 1, 8), make(1, 1, 8)),
    "attention": lambda make: (make(1, 1, 2, 8), make(1, 1, 2, 8), make(1, 1, 2, 8), None, 1.0),
    "conv2d": lambda make: (make(1, 64, 4, 4), None, make(64, 64, 3, 3)),
    "group_norm_silu": lambda make: (make(1, 2, 2, 2), 1),
    "linear": lambda make: (make(1, 2, 8), make(8, 8)),
    "linear_combine": lambda make: ([make(2)], [1.0], 1),
    "residual_ada_layer_norm": lambda make: (make(1, 2, 8), make(1, 2, 8)),
}


@dataclass(frozen=True)
class Choice:
    """What runs an operation on a kind of device, in some dtypes; why_not: why its kernels do not, by their name."""

    op: str
    device: str
    dtypes: tuple[str, ...]
    runs: str
    why_not: dict[str, str]

    def __str__(self) -> str:
        said = "; ".join(f"{name}: {reason}" for name, reason in self.why_not.items())
        dtypes = f" ({', '.join(self.dtypes)})" if self.dtypes else ""
        return f"{self.op} on {self.device}{dtypes}: {self.runs}" + (f" [{said}]" if said else "")


@dataclass(frozen=True)
class Explanation:
    """choices: of every operation and device; notes: of the calls until then that no kernel could take, how many and
    why; model: of the model asked about. Printed, a line each."""

    choices: list[Choice]
    notes: list[str] = field(default_factory=list)
    model: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.choices), *self.notes, *self.model])


def explain(
    model: Callable[..., Any] | None = None, inputs: tuple[Any, ...] | None = None, *, html: str | Path | None = None
) -> Explanation:
    """Which implementation each operation takes on each kind of device, and why not another, under the backend in force
    (fastdiff.use, FASTDIFF_BACKEND); for which calls until now no kernel was found; and which
    algorithm each convolution until now took. Print the result.

    With a model, instead: of one that went through `fastdiff.optimize`, what its passes matched and what not, and with
    `inputs`, the arguments of one more call, where the time goes, also as a page in the file `html`; and how its
    sampling loop was run on a GPU: as a captured graph, or as launches and why.
    """
    if model is not None:
        lines = []
        if isinstance(model, nn.Module) and is_fast(model):
            lines = str(explain_model(model, inputs, html=html)).splitlines()
        return Explanation([], model=[*lines, *graphs.explain(model)])
    choices = [choice for device in ("cpu", "cuda") for op in OPS for choice in _choices(op, device)]
    choices += [_sampling_loop(device) for device in ("cpu", "cuda")]
    notes = [f"{op}: in PyTorch {count} times, as {reason}" for (op, reason), count in choice.notes().items()]
    notes += [f"conv2d of {line}" for line in conv2d_algorithms.explain().splitlines()]
    return Explanation(choices, notes)


def _choices(op: str, device: str) -> list[Choice]:
    """One for each set of dtypes with the same answer."""
    if device == "cuda" and not torch.cuda.is_available():
        return [Choice(op, device, (), "nothing", {"triton": triton.unavailable() or "torch sees no GPU"})]
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for dtype in DTYPES:
        runs, why_not = _implementation(op, device, dtype)
        found.setdefault((runs, tuple(why_not.items())), []).append(str(dtype).removeprefix("torch."))
    return [Choice(op, device, tuple(dtypes), runs, dict(why_not)) for (runs, why_not), dtypes in found.items()]


def _implementation(op: str, device: str, dtype: torch.dtype) -> tuple[str, dict[str, str]]:
    """What runs, and the reason of each that does not."""
    operator = OPS[op]
    a = operator.Arguments(*_ARGUMENTS[op](lambda *shape: torch.zeros(shape, dtype=dtype, device=device)))
    reasons = {"C++": operator.unsupported(a), "triton": operator.unsupported_by_triton(a)}
    backend = choice.current()
    if backend == "reference":
        return "PyTorch", {"kernels": "the reference backend was chosen"}
    # Each is made for one kind of device.
    name = {"triton": "triton", "cpu": "C++"}.get(backend, "triton" if device == "cuda" else "C++")
    if (reason := reasons[name]) is not None:
        optional = backend == "auto" or (backend == "triton" and not operator.has_triton)
        return "PyTorch" if optional else "an error", {name: reason}
    return f"C++ ({core.isa()})" if name == "C++" else "Triton", {}


def _sampling_loop(device: str) -> Choice:
    """Of solvers, from a float32 state."""
    op, backend = "sampling loop", choice.current()
    if backend == "reference":
        return Choice(op, device, (), "PyTorch", {"kernels": "the reference backend was chosen"})
    made, reason = steps.choose(torch.device(device))
    if device == "cpu" and backend != "triton":
        return Choice(op, device, (), f"C++ ({core.isa()})", {})
    if made is not None and backend != "cpu":
        name = "CUDA" if made is steps.NativeSteps else "Triton"
        return Choice(op, device, (), f"{name} kernels, as one graph where the model can be captured", {})
    why_not = {"kernels": "the cpu backend was chosen" if backend == "cpu" else reason}
    return Choice(op, device, (), "PyTorch" if backend == "auto" else "an error", why_not)
