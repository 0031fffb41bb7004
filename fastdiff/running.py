"""`fastdiff.run`: a Program on a model, and what it shares with `fastdiff.sample`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments, engine
from fastdiff.arguments import described
from fastdiff.engine.bound import Callback
from fastdiff.errors import expect
from fastdiff.process.noise import CounterNoise, Drawn, Noise, given_noise
from fastdiff.program import Program

Gradients = Mapping[str, Callable[[Tensor, Tensor], Tensor]]


def run(
    program: Program,
    model: Callable[..., Any],
    x: Tensor,
    *,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    gradients: Gradients | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    seed: int | Sequence[int] | None = None,
    first_sample: int = 0,
    noise: Noise = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Run a Program, from `fastdiff.trace` or Program.from_json, from the state x.

    x: (B, ...) at the Program's first time, float32, float64, bfloat16 or float16 on any device. The schedule, the
    grid, the prediction type and the guidance's scale are in the Program.
    cond, uncond: keyword arguments of the model, as in `fastdiff.sample`; a guided Program needs both.
    gradients: {"classifier": function (x, t) -> (B, ...)} for a Program that was traced with a classifier,
        and by their names for one that was traced with Gradients.
    tensors, seed, first_sample, noise, progress: as in `fastdiff.sample`. callback(step, state): after every step, of a
        Program that was traced with keep_states=True.

    Returns the sample, like x. Raises TypeError or ValueError for arguments that do not fit, SamplingError (naming the
    step) if the model fails or returns another shape or NaN.
    """
    if not isinstance(program, Program):
        raise TypeError(f"program must be a Program, as fastdiff.trace makes it, got {described(program)}")
    arguments.network(model)
    arguments.callback(callback)
    x = arguments.state("x", x)
    arguments.beside_model("x", x, model)
    counter = CounterNoise.of(seed, len(x), first_sample)
    inputs = make_inputs(x, counter, noise, cond, uncond, gradients, tensors)
    return run_program(program, model, x, inputs, uncond is not None, callback, progress)


def make_inputs(
    x: Tensor,
    counter: CounterNoise,
    noise: Noise,
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    gradients: Gradients | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> engine.Inputs:
    """Of a run from x, after all checks that need no Program."""
    cond = arguments.conditions("cond", cond, len(x))
    uncond = arguments.conditions("uncond", uncond, len(x))
    arguments.same_device("cond", cond, x.device)
    arguments.same_device("uncond", uncond, x.device)
    if gradients is not None and not (isinstance(gradients, Mapping) and all(map(callable, gradients.values()))):
        raise TypeError(f"gradients must hold functions (x, t) by their names, got {described(gradients)}")
    draw = given_noise(noise, x.shape, torch.promote_types(x.dtype, torch.float32), x.device)
    return engine.Inputs(
        counter,
        draw,
        cond,
        uncond,
        gradients or {},
        given=len(noise) if isinstance(noise, (Tensor, list, tuple)) else None,
        tensors=arguments.constants("tensors", tensors, x),
    )


def run_program(
    program: Program,
    model: Callable[..., Any],
    x: Tensor,
    inputs: engine.Inputs,
    has_uncond: bool | None,
    callback: Callback | None,
    progress: bool,
) -> Tensor:
    """As `fastdiff.run`. has_uncond: whether there is an uncond; None where that has been checked. Raises ValueError
    for what the Program needs and the inputs have not."""
    expect(
        has_uncond is not False or not program.guided,
        "guidance needs uncond, the model's arguments without the condition",
    )
    if has_uncond and not program.guided:
        warn_unguided(4)
    expect(
        callback is None or bool(program.states),
        "callback needs a Program that keeps its states: trace(..., keep_states=True)",
    )
    wanted = f"solver {program.name!r} draws {program.num_noises} noises in this run"
    expect(inputs.given is None or inputs.given >= program.num_noises, f"{wanted}, and noise holds {inputs.given}")
    expect_tensors(program.name, dict(program.tensors), inputs.tensors)
    if not program.num_noises:
        warn_undrawn(program.name, inputs, 4)
    with shown(model, progress, program.model_calls) as network:
        return engine.run(program, network, x, inputs, callback)


def expect_tensors(name: str, wanted: Iterable[str], given: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the tensors that a solver reads are given, and no others."""
    expect(
        set(wanted) == set(given),
        f"solver {name!r} reads the tensors {sorted(wanted)}, and tensors holds {sorted(given)}",
    )


def warn_unguided(stacklevel: int) -> None:
    """Say that uncond has no use."""
    warnings.warn(
        "fastdiff: uncond is not used, as there is no guidance: give guidance=7.5, or fastdiff.CFG",
        stacklevel=stacklevel,
    )


def warn_undrawn(name: str, inputs: engine.Inputs, stacklevel: int) -> None:
    """Say that noise has no use, of a solver that draws none. A function is not asked, so that it may be there."""
    if inputs.given is not None or isinstance(inputs.draw, Drawn):
        warnings.warn(
            f"fastdiff: noise is not used, as solver {name!r} draws none in this run; the initial state is that of "
            "seed, or given in place of the shape",
            stacklevel=stacklevel,
        )


@contextmanager
def shown(model: Callable[..., Any], progress: bool, calls: int | None) -> Iterator[Callable[..., Any]]:
    """The model, with a bar on stderr of its calls if there is to be one. calls: how many there will be, if known."""
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be True or False, got {described(progress)}")
    if not progress:
        yield model
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("model calls", total=calls)

        def counted(x: Tensor, t: Tensor, **conditions: Any) -> Any:
            out = model(x, t, **conditions)
            bar.advance(task)
            return out

        yield counted
