"""Which implementation runs, and why not another: `fastdiff.explain`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdiff.arguments import described
from fastdiff.bench import cases
from fastdiff.compiler.explain import explain as explain_model
from fastdiff.compiler.explain import is_fast, write_html
from fastdiff.engine import steps
from fastdiff.ops import OPS, conv2d_algorithms
from fastdiff.optimizing import is_pipeline
from fastdiff.runtime import candidates, choice, graphs, triton
from fastdiff.runtime.native import core

_PLAIN = "it is not optimized: fastdiff.optimize(model) does that"


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
    (fastdiff.use, FASTDIFF_BACKEND); for which calls until now no kernel was found; which algorithm each convolution
    until now took; and which candidate each call on a GPU took, with the times of all, or that it is from the table or
    not measured, and why others were dropped. Print the result.

    With a model, instead: of one that went through `fastdiff.optimize`, what its passes matched and what not, and with
    `inputs`, the arguments of one more call, where the time goes, also as a page in the file `html`; and how its
    sampling loop was run on a GPU: as a captured graph, or as launches and why, and the candidates taken there. With a
    pipeline of diffusers, the same of each network and scheduler; raises TypeError if there are `inputs`, which are
    those of one network, and for what is neither.
    """
    if inputs is not None and not isinstance(inputs, (tuple, list)):
        raise TypeError(f"inputs must be a tuple of the model's arguments, got {described(inputs)}")
    if is_pipeline(model):
        if inputs is not None:
            raise TypeError("explain() takes inputs for one network, as in explain(pipe.unet, inputs), not a pipeline")
        found = Explanation([], model=_pipeline(model))
        if html is not None:
            write_html(str(found), html)
        return found
    if model is not None:
        if not callable(model):
            raise TypeError(f"explain() takes a model or a pipeline of diffusers, got {type(model).__name__}")
        lines = []
        if isinstance(model, nn.Module):
            fast = is_fast(model)
            lines = str(explain_model(model, inputs, html=html)).splitlines() if fast else [_PLAIN]
            if any(p.is_cuda for p in model.parameters()):
                lines += candidates.lines()
        return Explanation([], model=[*lines, *graphs.explain(model)])
    choices = [choice for device in ("cpu", "cuda") for op in OPS for choice in _choices(op, device)]
    choices += [_sampling_loop(device) for device in ("cpu", "cuda")]
    notes = [f"{op}: in PyTorch {count} times, as {reason}" for (op, reason), count in choice.notes().items()]
    notes += [f"conv2d of {line}" for line in conv2d_algorithms.explain().splitlines()]
    notes += candidates.lines()
    if triton.unavailable() is None and not triton.INTERPRETED:
        from fastdiff.kernels.launching import unknown_launcher

        notes += [] if (reason := unknown_launcher()) is None else [reason]
    return Explanation(choices, notes)


def _pipeline(pipeline: Any) -> list[str]:
    """A pipeline's networks and schedulers, by name."""
    from fastdiff.integrations.diffusers import explain_schedulers, models

    lines = []
    for name, module in models(pipeline).items():
        lines += [f"{name}: {type(module).__name__}", *(f"  {line}" for line in _module(module))]
    return lines + explain_schedulers(pipeline)


def _module(module: nn.Module) -> list[str]:
    return str(explain_model(module)).splitlines() if is_fast(module) else [_PLAIN]


def _choices(op: str, device: str) -> list[Choice]:
    """One for each set of dtypes with the same answer."""
    if device == "cuda" and not torch.cuda.is_available():
        return [Choice(op, device, (), "nothing", {"triton": triton.unavailable() or "torch sees no GPU"})]
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for case in cases.of(op, "smallest"):
        runs, why_not = _implementation(case, device)
        found.setdefault((runs, tuple(why_not.items())), []).append(case.type_name)
    return [Choice(op, device, tuple(dtypes), runs, dict(why_not)) for (runs, why_not), dtypes in found.items()]


def _implementation(case: cases.Case, device: str) -> tuple[str, dict[str, str]]:
    """What runs, and the reason of each that does not."""
    operator = OPS[case.op]
    a = operator.arguments(**case.make(device=device))
    reasons = {"C++": operator.unsupported(a), "triton": operator.unsupported_by_triton(a)}
    backend = choice.current()
    if backend == "reference":
        return "PyTorch", {"kernels": "the reference backend was chosen"}
    if device == "cuda" and backend == "auto" and len(ways := _ways(operator.candidates(a))) > 1:
        return f"the quickest of {', '.join(ways)}", {}
    # Each is made for one kind of device.
    name = {"triton": "triton", "cpu": "C++"}.get(backend, "triton" if device == "cuda" else "C++")
    if (reason := reasons[name]) is not None:
        optional = backend == "auto" or (backend == "triton" and not operator.has_triton)
        return "PyTorch" if optional else "an error", {name: reason}
    return f"C++ ({core.isa()})" if name == "C++" else "Triton", {}


def _ways(found: list[candidates.Candidate]) -> list[str]:
    """Candidates by name, all that differ in tiles or plans as one."""
    names = {"triton": "Triton", candidates.TORCH: "PyTorch"}
    first = [candidate.name.split()[0] for candidate in found]
    return list(dict.fromkeys(names.get(name, name) for name in first))


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
