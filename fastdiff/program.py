"""A solver traced to data: linear forms, the tracer, and the Program that an engine runs.

Every quantity of a sampling run is linear in the initial state, the network's outputs and the noise, with coefficients
that are known before the run. Tracing calls the solver's step function on symbols, once a step, and yields a `Program`:
model calls and, between them, one `Combine` each, which computes all that is needed later from what is there, in one
pass over memory. See docs/program.md for a worked example.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from numbers import Real
from typing import Any

from fastdiff.errors import expect
from fastdiff.guidance.classifier_free import CFG
from fastdiff.prediction import Prediction
from fastdiff.schedules import Float64Array, Point, Schedule
from fastdiff.solvers.registry import Solver, get_solver

# ---- linear forms ---------------------------------------------------------------------------------------------------


class LinearForm:
    """A sum of symbols with float64 coefficients: what a step function computes with when it is traced."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[int, float]) -> None:
        self.terms = terms  # symbol -> coefficient

    def __add__(self, other: LinearForm | int) -> LinearForm:
        if not isinstance(other, LinearForm):
            return self if other == 0 else NotImplemented  # 0 + form, so that sum() works
        terms = dict(self.terms)
        for symbol, coefficient in other.terms.items():
            terms[symbol] = terms.get(symbol, 0.0) + coefficient
        return LinearForm(terms)

    __radd__ = __add__

    def __mul__(self, factor: float) -> LinearForm:
        if isinstance(factor, LinearForm):
            raise TypeError("a solver's step must be linear: the product of two of its quantities is not")
        return LinearForm({symbol: factor * coefficient for symbol, coefficient in self.terms.items()})

    __rmul__ = __mul__

    def __bool__(self) -> bool:
        raise TypeError("a solver's step must not look at values: they are not known when it is traced")

    def __eq__(self, other: object) -> bool:
        raise TypeError("a solver's step must not compare values: they are not known when it is traced")

    __hash__ = None  # type: ignore[assignment]

    def __neg__(self) -> LinearForm:
        return self * -1.0

    def __sub__(self, other: LinearForm) -> LinearForm:
        return self + -other

    def __truediv__(self, divisor: float) -> LinearForm:
        return self * (1.0 / divisor)


# ---- programs -------------------------------------------------------------------------------------------------------

# A source of a sum: ("buffer", slot), ("cond", 0) and ("uncond", 0) for the network's last outputs, ("noise", draw).
Source = tuple[str, int]


@dataclass(frozen=True)
class Call:
    """One evaluation of the network: the buffer it reads, the schedule point, the time it is given, and whether the
    unconditional output is needed as well. step: index of the solver step that the call belongs to."""

    input: int
    point: Point
    model_time: float
    guided: bool
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


@dataclass(frozen=True)
class Program:
    """What an engine runs: `instructions` in order, on `num_slots` buffers of the sample's shape.

    The run starts with the initial state in buffer 0 and ends with the sample in buffer `result`. num_noises: standard
    normal draws, numbered in the order of the solver's requests. states: for every step, (index of the instruction
    after which its state is there, buffer); recorded where asked for, for callbacks.
    """

    name: str
    instructions: tuple[Call | Combine, ...]
    num_slots: int
    result: int
    num_noises: int
    states: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        self.validate()

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The model calls in order."""
        return tuple(i for i in self.instructions if isinstance(i, Call))

    @cached_property
    def tables(self) -> dict[int, tuple[list[int], tuple[Source, ...], list[float]]]:
        """For every combine, by the index of its instruction: the slots of its outputs, its sources, and the matrix of
        coefficients, flat, that of source k and output m at [k * outputs + m]. Made once."""
        tables = {}
        for index, instruction in enumerate(self.instructions):
            if isinstance(instruction, Combine):
                sources = instruction.sources()
                terms = [dict(output.terms) for output in instruction.outputs]
                coefficients = [of.get(source, 0.0) for source in sources for of in terms]
                tables[index] = ([output.slot for output in instruction.outputs], sources, coefficients)
        return tables

    @property
    def nfe(self) -> int:
        """Network evaluations a sample; a guided call counts twice, as it does in time."""
        return sum(2 if call.guided else 1 for call in self.calls)

    def validate(self) -> None:
        """Raise ValueError if a buffer is read before it is written, or a coefficient is not finite."""
        written, called, guided = {0}, False, False
        for index, instruction in enumerate(self.instructions):
            where = f"instruction {index} of program {self.name!r}"
            if isinstance(instruction, Call):
                expect(instruction.input in written, f"{where} reads buffer {instruction.input} before it is written")
                called, guided = True, instruction.guided
                continue
            for output in instruction.outputs:
                for (kind, number), coefficient in output.terms:
                    expect(math.isfinite(coefficient), f"{where} has the coefficient {coefficient}")
                    ready = {
                        "buffer": number in written,
                        "cond": called,
                        "uncond": guided,
                        "noise": 0 <= number < self.num_noises,
                    }
                    expect(ready.get(kind, False), f"{where} reads {kind} {number}, which is not there")
            written |= {output.slot for output in instruction.outputs}
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
            return cls(instructions=tuple(instructions), states=states, **data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a Program: {error!r}") from error

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.name}: {len(self.calls)} calls, {self.num_slots} buffers, {self.num_noises} noises"
        names = {"buffer": "b", "cond": "out", "uncond": "uncond", "noise": "z"}
        for instruction in self.instructions:
            if isinstance(instruction, Call):
                p = instruction.point
                yield (
                    f"call b{instruction.input} at t={p.t:.6g} (model {instruction.model_time:.6g}), "
                    f"alpha={p.alpha:.6g}, sigma={p.sigma:.6g}, lambda={p.lam:.6g}{', guided' * instruction.guided}"
                )
                continue
            for output in instruction.outputs:
                terms = (
                    f"{c:+.6g} {names[kind]}{number if kind in ('buffer', 'noise') else ''}"
                    for (kind, number), c in output.terms
                )
                yield f"  b{output.slot} = {' '.join(terms)}"


def _instruction_from_dict(data: dict[str, Any]) -> Call | Combine:
    kind = data.pop("kind")
    if kind == "call":
        return Call(point=Point(**data.pop("point")), **data)
    outputs = (
        Output(output["slot"], tuple(((source[0], source[1]), c) for source, c in output["terms"]))
        for output in data["outputs"]
    )
    return Combine(tuple(outputs))


# ---- tracing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Symbol:
    """A quantity of the run. epoch: how many calls have been made when it can be computed. definition: the form it
    stands for, None for a leaf: the initial state, a network output or a noise."""

    kind: str  # "value", "initial", "output", "noise"
    epoch: int
    definition: LinearForm | None = None
    number: int = 0  # of the noise


class _Tracer:
    """Plays the model for a step function and records what it asks for."""

    def __init__(self, schedule: Schedule, prediction: Prediction, guidance: CFG | None) -> None:
        self.schedule, self.prediction, self.guidance = schedule, prediction, guidance
        self.symbols: list[_Symbol] = [_Symbol("initial", 0)]
        self.calls: list[tuple[int, Call]] = []  # (symbol of the input, call)
        self.num_noises = 0
        self.step = 0

    def x0(self, x: LinearForm, s: Point) -> LinearForm:
        return self._evaluate(x, s, self.prediction.x0)

    def eps(self, x: LinearForm, s: Point) -> LinearForm:
        return self._evaluate(x, s, self.prediction.eps)

    def at_lam(self, lam: float) -> Point:
        return self.schedule.point(float(self.schedule.t_of_lam(lam)))

    def noise(self) -> LinearForm:
        symbol = self._new(_Symbol("noise", 0, number=self.num_noises))
        self.num_noises += 1
        return LinearForm({symbol: 1.0})

    def close(self, form: LinearForm) -> LinearForm:
        """A symbol for the form, so that it is computed once; the form itself if it is one already."""
        if list(form.terms.values()) == [1.0]:
            return form
        return LinearForm({self._new(_Symbol("value", len(self.calls), form)): 1.0})

    def _evaluate(self, x: LinearForm, s: Point, conversion: Any) -> LinearForm:
        x = self.close(x)
        guided = self.guidance is not None and self.guidance.active(s)
        call = Call(-1, s, self.schedule.model_time(s.t), guided, self.step)
        self.calls.append((next(iter(x.terms)), call))
        out = LinearForm({self._new(_Symbol("output", len(self.calls))): 1.0})
        a, b = conversion(s)
        return self.close((a * x if a else 0) + b * out)

    def _new(self, symbol: _Symbol) -> int:
        self.symbols.append(symbol)
        return len(self.symbols) - 1


def trace(
    solver: Solver | str,
    schedule: Schedule,
    times: Sequence[float] | Float64Array,
    prediction: Prediction,
    *,
    guidance: CFG | None = None,
    keep_states: bool = False,
) -> Program:
    """The Program of a solver on a grid.

    times: decreasing schedule times, from where the initial state is to where the sample is. guidance: mixes the
    conditional and the unconditional output in the coefficients. keep_states: also hold the state after every step in
    a buffer, for callbacks. Raises ValueError for a step that divides by zero or does not give finite coefficients.
    """
    solver = get_solver(solver)
    eta = solver.options.get("eta", 0.0)
    expect(isinstance(eta, Real) and 0 <= float(eta) < math.inf, f"eta must be a finite number >= 0, got {eta!r}")
    tracer = _Tracer(schedule, prediction, guidance)
    points = schedule.points(times)
    noise = {"noise": tracer.noise} if solver.stochastic else {}
    history: deque = deque(maxlen=solver.history)
    x, states = LinearForm({0: 1.0}), []
    for tracer.step, (s, t) in enumerate(pairwise(points)):
        try:
            x = tracer.close(solver.step(tracer, x, s, t, history, **solver.options, **noise))
        except (ZeroDivisionError, OverflowError, ValueError) as error:
            if isinstance(error, ValueError) and not str(error).startswith("math domain"):
                raise
            options = f" with {solver.options}" if solver.options else ""
            step = f"from t={s.t:g} to t={t.t:g} of {schedule.name}"
            raise ValueError(f"solver {solver.name!r}{options} cannot step {step}") from error
        states.append(next(iter(x.terms)))
    return _lower(solver.name, tracer, states, keep_states)


# ---- lowering: which symbols need a buffer, and which one -----------------------------------------------------------


def _lower(name: str, tracer: _Tracer, states: Sequence[int], keep_states: bool) -> Program:
    symbols, calls = tracer.symbols, tracer.calls
    last_epoch = len(calls)

    # Backwards: what each epoch must leave in a buffer (as sums of what is there then), and until which epoch.
    until = {0: 0}  # the initial state is in a buffer from the start
    made: list[dict[int, dict[int, float]]] = [{} for _ in range(last_epoch + 1)]  # epoch -> symbol -> its sum

    def keep(symbol: int, epoch: int) -> None:
        until[symbol] = max(until.get(symbol, epoch), epoch)
        if symbol:
            made[symbols[symbol].epoch].setdefault(symbol, {})

    for epoch, (symbol, _) in enumerate(calls):
        keep(symbol, epoch + 1)
    for symbol in states if keep_states else ():
        keep(symbol, symbols[symbol].epoch)
    keep(states[-1], last_epoch + 1)
    for epoch in range(last_epoch, -1, -1):
        for symbol in made[epoch]:
            made[epoch][symbol] = terms = _expand(symbols, symbol, epoch)
            for leaf in terms:
                if leaf == 0 or (symbols[leaf].kind != "noise" and symbols[leaf].epoch < epoch):
                    keep(leaf, epoch)

    # Forwards: a buffer for each of them, free again after its last use (an output may replace it in that very pass).
    slot_of, written_at = {0: 0}, {0: -1}
    released: list[list[int]] = [[] for _ in range(last_epoch + 2)]  # epoch -> slots whose last use it is
    released[until[0]].append(0)
    instructions: list[Call | Combine] = []
    free: list[int] = []
    num_slots = 1
    for epoch in range(last_epoch + 1):
        free += released[epoch]
        outputs = []
        for symbol, terms in sorted(made[epoch].items()):
            if free:
                slot = free.pop(0)
            else:
                slot, num_slots = num_slots, num_slots + 1
            outputs.append((symbol, slot, terms))
        if outputs:  # all of them read what was there before any is written
            instructions.append(
                Combine(tuple(Output(slot, _sources(tracer, terms, epoch, slot_of)) for _, slot, terms in outputs))
            )
        for symbol, slot, _ in outputs:
            slot_of[symbol], written_at[symbol] = slot, len(instructions) - 1
            released[max(until[symbol], epoch + 1)].append(slot)
        if epoch < last_epoch:
            symbol, call = calls[epoch]
            instructions.append(replace(call, input=slot_of[symbol]))
    kept = tuple((written_at[s], slot_of[s]) for s in states) if keep_states else ()
    return Program(name, tuple(instructions), num_slots, slot_of[states[-1]], tracer.num_noises, kept)


def _expand(symbols: Sequence[_Symbol], symbol: int, epoch: int) -> dict[int, float]:
    """The symbol as a sum of what is there in `epoch`: older symbols, this epoch's network output, noises."""
    sums: dict[int, float] = {}
    pending = [(symbol, 1.0)]
    while pending:
        symbol, factor = pending.pop()
        what = symbols[symbol]
        if what.definition is None or what.epoch < epoch:
            sums[symbol] = sums.get(symbol, 0.0) + factor
        else:
            pending += [(inner, factor * c) for inner, c in what.definition.terms.items()]
    return {symbol: c for symbol, c in sorted(sums.items()) if c != 0}


def _sources(
    tracer: _Tracer, terms: dict[int, float], epoch: int, slot_of: dict[int, int]
) -> tuple[tuple[Source, float], ...]:
    """A sum of symbols as a sum of what an engine can read."""
    sources: list[tuple[Source, float]] = []
    for symbol, coefficient in terms.items():
        what = tracer.symbols[symbol]
        if what.kind == "noise":
            sources.append((("noise", what.number), coefficient))
        elif what.kind == "output" and what.epoch == epoch:
            if tracer.calls[epoch - 1][1].guided:
                assert tracer.guidance is not None
                scale = tracer.guidance.scale
                sources += [(("cond", 0), coefficient * scale), (("uncond", 0), coefficient * (1 - scale))]
            else:
                sources.append((("cond", 0), coefficient))
        else:
            sources.append((("buffer", slot_of[symbol]), coefficient))
    return tuple(sources)
