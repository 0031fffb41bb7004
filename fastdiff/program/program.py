"""Program: a solver's run as data, which an engine executes.

Every quantity of a sampling run is linear in the initial state, the network's outputs and the noise, with coefficients
that are known before the run; what is not linear is an instruction of its own. `fastdiff.program.tracing` makes a
Program from a solver's formula. See docs/program.md for a worked example.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from fastdiff.errors import expect
from fastdiff.process.schedules import Point
from fastdiff.program.transforms import TRANSFORMS
from fastdiff.runtime.native import core

# A source of a sum: ("buffer", slot), ("cond", 0) and ("uncond", 0) for the network's last outputs, ("noise", draw).
Source = tuple[str, int]
KINDS = ("buffer", "cond", "uncond", "noise")  # in the order of enum class Source in csrc/include/fastdiff/plan.h


@dataclass(frozen=True)
class Call:
    """One evaluation of a network: the buffer it reads, the schedule point, the time it is given, and whether the
    unconditional output is needed as well.

    step: index of the solver step that the call belongs to. network: "model", or the name of a gradient among
    the run's `fastdiff.engine.Inputs`, such as "classifier".
    variance: the buffer that receives the second half of the output's channels, where the step asks for it.
    """

    input: int
    point: Point
    model_time: float
    guided: bool
    step: int
    network: str = "model"
    variance: int | None = None


@dataclass(frozen=True)
class Apply:
    """A function of whole buffers that is not linear, by its name in `fastdiff.program.transforms.TRANSFORMS`. The next
    combine reads its result as ("cond", 0), like that of a call."""

    function: str
    inputs: tuple[int, ...]
    parameters: tuple[tuple[str, float | str], ...]
    step: int


@dataclass(frozen=True)
class Output:
    """buffer `slot` := sum of coefficient * source."""

    slot: int
    terms: tuple[tuple[Source, float], ...]


@dataclass(frozen=True)
class Combine:
    """Outputs computed together, in one pass, after a call (or before the first). All sources are read before any
    output is written, so that an output may take the place of a buffer whose last use this is."""

    outputs: tuple[Output, ...]

    def sources(self) -> tuple[Source, ...]:
        """Every source that an output reads, once."""
        return tuple(dict.fromkeys(source for output in self.outputs for source, _ in output.terms))


Instruction = Call | Apply | Combine


@dataclass(frozen=True)
class Program:
    """What an engine runs: `instructions` in order, on `num_slots` buffers of the sample's shape.

    The run starts with the initial state in buffer 0 and ends with the sample in buffer `result`. num_noises: standard
    normal draws, numbered in the order of the solver's requests. states: for every step, (index of the instruction
    after which its state is there, buffer); recorded where asked for, for callbacks. split_output: the network returns
    twice the state's channels, the first half being its prediction. tensors: constants of the run by name, such as a
    mask, each with the buffer that holds it from the start and that nothing is written to.
    """

    name: str
    instructions: tuple[Instruction, ...]
    num_slots: int
    result: int
    num_noises: int
    states: tuple[tuple[int, int], ...] = ()
    split_output: bool = False
    tensors: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        self.validate()

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The calls of the model and of gradients, in order."""
        return tuple(i for i in self.instructions if isinstance(i, Call))

    @cached_property
    def guided(self) -> bool:
        """Whether any call needs the unconditional output too."""
        return any(call.guided for call in self.calls)

    @cached_property
    def model_calls(self) -> int:
        """Calls of the model, those of gradients not counted; a guided one counts once."""
        return sum(call.network == "model" for call in self.calls)

    @cached_property
    def tables(self) -> dict[int, tuple[list[int], list[int], list[int], list[float]]]:
        """For every combine, by the index of its instruction: the slots of its outputs, the kinds (places in `KINDS`)
        and numbers of its sources, and the matrix of coefficients, flat, that of source k and output m at [k * outputs
        + m]. Made once."""
        tables = {}
        for index, instruction in enumerate(self.instructions):
            if isinstance(instruction, Combine):
                sources = instruction.sources()
                terms = [dict(output.terms) for output in instruction.outputs]
                coefficients = [of.get(source, 0.0) for source in sources for of in terms]
                kinds, numbers = [KINDS.index(kind) for kind, _ in sources], [number for _, number in sources]
                tables[index] = ([output.slot for output in instruction.outputs], kinds, numbers, coefficients)
        return tables

    def too_wide(self) -> str | None:
        """Why the compiled kernels, which are made for few outputs and inputs, cannot run a step of this, or None."""
        for slots, kinds, _, _ in self.tables.values():
            if len(slots) > core.MAX_OUTPUTS or len(kinds) > core.MAX_INPUTS:
                return (
                    f"a step has {len(slots)} outputs of {len(kinds)} inputs; the kernels are compiled for at most "
                    f"{core.MAX_OUTPUTS} of {core.MAX_INPUTS}"
                )
        return None

    @property
    def nfe(self) -> int:
        """Evaluations of the model a sample; a guided call counts twice, as it does in time."""
        return sum(2 if call.guided else 1 for call in self.calls if call.network == "model")

    def validate(self) -> None:
        """Raise ValueError if a buffer is read before it is written, a tensor is written to, or a coefficient is not
        finite."""
        constants = {slot: name for name, slot in self.tensors}
        expect(
            len(constants) == len(dict(self.tensors)) == len(self.tensors) and 0 not in constants,
            f"the tensors of program {self.name!r} must have names and buffers of their own, got {self.tensors}",
        )
        written, called, guided = {0, *constants}, False, False
        for index, instruction in enumerate(self.instructions):
            fault = None
            if isinstance(instruction, Combine):
                for output in instruction.outputs:
                    for (kind, number), coefficient in output.terms:
                        ready = (
                            (kind == "buffer" and number in written)
                            or (kind == "cond" and called)
                            or (kind == "uncond" and guided)
                            or (kind == "noise" and 0 <= number < self.num_noises)
                        )
                        if not ready:
                            fault = f"reads {kind} {number}, which is not there"
                        elif not math.isfinite(coefficient):
                            fault = f"has the coefficient {coefficient}"
                    if output.slot in constants:
                        fault = f"writes to the tensor {constants[output.slot]!r}"
                written.update(output.slot for output in instruction.outputs)
            else:
                inputs = (instruction.input,) if isinstance(instruction, Call) else instruction.inputs
                missing = [slot for slot in inputs if slot not in written]
                called, guided = True, isinstance(instruction, Call) and instruction.guided
                if missing:
                    fault = f"reads buffer {missing[0]} before it is written"
                elif isinstance(instruction, Apply):
                    if instruction.function not in TRANSFORMS:
                        fault = f"applies {instruction.function!r}, which is not known"
                elif instruction.variance is not None:
                    written.add(instruction.variance)
                    if instruction.variance in constants:
                        fault = f"writes to the tensor {constants[instruction.variance]!r}"
                    if not self.split_output:
                        fault = "wants a variance, and the network's output is not split"
            expect(fault is None, f"instruction {index} of program {self.name!r} {fault}")
        expect(written <= set(range(self.num_slots)), f"program {self.name!r} uses more than {self.num_slots} buffers")
        expect(self.result in written, f"program {self.name!r} never writes its result")

    def to_json(self) -> str:
        """The program as JSON; `from_json` gives an equal one."""
        kinds = [{"kind": type(i).__name__.lower(), **asdict(i)} for i in self.instructions]
        return json.dumps({**asdict(self), "instructions": kinds}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Program:
        """A program from `to_json`. Raises ValueError if it is not valid."""
        data = json.loads(text)
        try:
            instructions = [_instruction_from_dict(dict(i)) for i in data.pop("instructions")]
            states = tuple((index, slot) for index, slot in data.pop("states"))
            tensors = tuple((name, slot) for name, slot in data.pop("tensors", ()))
            return cls(instructions=tuple(instructions), states=states, tensors=tensors, **data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a Program: {error!r}") from error

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        counts = (len(self.calls), "call"), (self.num_slots, "buffer"), (self.num_noises, "noise")
        yield f"{self.name}: {', '.join(f'{count} {word}' + 's' * (count != 1) for count, word in counts)}"
        for name, slot in self.tensors:
            yield f"tensor {name} in b{slot}"
        names = {"buffer": "b", "cond": "out", "uncond": "uncond", "noise": "z"}
        for instruction in self.instructions:
            if isinstance(instruction, Call):
                p = instruction.point
                network = "" if instruction.network == "model" else f"{instruction.network} "
                variance = f", variance to b{instruction.variance}" if instruction.variance is not None else ""
                yield (
                    f"call {network}b{instruction.input} at t={p.t:.6g} (model {instruction.model_time:.6g}), "
                    f"alpha={p.alpha:.6g}, sigma={p.sigma:.6g}, lambda={p.lam:.6g}"
                    f"{', guided' * instruction.guided}{variance}"
                )
                continue
            if isinstance(instruction, Apply):
                arguments = [f"b{slot}" for slot in instruction.inputs]
                arguments += [f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in instruction.parameters]
                yield f"apply {instruction.function}({', '.join(arguments)})"
                continue
            for output in instruction.outputs:
                terms = (
                    f"{c:+.6g} {names[kind]}{number if kind in ('buffer', 'noise') else ''}"
                    for (kind, number), c in output.terms
                )
                yield f"  b{output.slot} = {' '.join(terms)}"


def _instruction_from_dict(data: dict[str, Any]) -> Instruction:
    kind = data.pop("kind")
    if kind == "call":
        return Call(point=Point(**data.pop("point")), **data)
    if kind == "apply":
        parameters = tuple((key, value) for key, value in data.pop("parameters"))
        return Apply(inputs=tuple(data.pop("inputs")), parameters=parameters, **data)
    outputs = (
        Output(output["slot"], tuple(((source[0], source[1]), c) for source, c in output["terms"]))
        for output in data["outputs"]
    )
    return Combine(tuple(outputs))
