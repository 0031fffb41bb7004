"""Tracing: from a solver's step function to a Program.

The step function is called on symbols, once a step. What it asks of the model become the Program's calls, and between
two of them there is one `Combine`, which computes all that is needed later from what is there, in one pass over memory.
See docs/program.md for a worked example.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastdiff.arguments import described, flag
from fastdiff.errors import expect, unknown
from fastdiff.guidance import Guidance, Threshold, make_guidance, make_threshold
from fastdiff.process.prediction import Prediction, get_prediction
from fastdiff.process.schedules import Float64Array, Point, Schedule, get_schedule
from fastdiff.program.linear_form import LinearForm, refused
from fastdiff.program.program import Apply, Call, Combine, Instruction, Output, Program, Source
from fastdiff.program.transforms import TRANSFORMS
from fastdiff.solvers.interface import StepModel
from fastdiff.solvers.registry import Solver, get_solver

# ---- tracing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Symbol:
    """A quantity of the run. epoch: how many calls have been made when it can be computed. definition: the form it
    stands for, None for a leaf.

    kind: "value" (has a definition), "initial" (the state), "output" (of the epoch's call, mixed by guidance),
    "conditional" (the same without guidance), "variance" (its second half, in a buffer of its own), "noise", "tensor"
    (a constant of the run, in a buffer from the start).
    """

    kind: str
    epoch: int
    definition: LinearForm | None = None
    number: int = 0  # of the noise


@dataclass(frozen=True)
class _Barrier:
    """Between two epochs: an instruction and the symbols it reads; variance: the symbol that it writes as well."""

    inputs: tuple[int, ...]
    instruction: Call | Apply
    variance: int | None = None


class _Tracer(StepModel):
    """Plays the model for a step function and records what it asks for."""

    def __init__(
        self, schedule: Schedule, prediction: Prediction, guidance: Guidance | None, threshold: Threshold | None
    ) -> None:
        super().__init__(schedule, prediction, guidance, threshold)
        self.symbols: list[_Symbol] = [_Symbol("initial", 0)]
        self.barriers: list[_Barrier] = []
        self.num_noises = 0
        self.tensors: dict[str, int] = {}  # name -> symbol

    def noise(self) -> LinearForm:
        form = self._new(_Symbol("noise", 0, number=self.num_noises))
        self.num_noises += 1
        return form

    def tensor(self, name: str) -> LinearForm:
        if name not in self.tensors:
            self._new(_Symbol("tensor", 0))
            self.tensors[name] = len(self.symbols) - 1
        return LinearForm({self.tensors[name]: 1.0})

    def apply(self, function: str, *quantities: LinearForm, **parameters: float | str) -> LinearForm:
        if function not in TRANSFORMS:
            raise unknown("function of model.apply", function, TRANSFORMS)
        try:
            inspect.signature(TRANSFORMS[function]).bind(*quantities, **parameters)
        except TypeError as error:
            raise TypeError(f"model.apply({function!r}, ...): {error}") from None
        inputs = tuple(self._symbol(self.close(form)) for form in quantities)
        self.barriers.append(_Barrier(inputs, Apply(function, (), tuple(parameters.items()), self.step)))
        return self._new(_Symbol("output", len(self.barriers)))

    def close(self, form: LinearForm) -> LinearForm:
        """A symbol for the form; the form itself if it is one already (but a noise, which has no buffer)."""
        if not isinstance(form, LinearForm):
            raise refused(f"the step gives {described(form)} where a state or another quantity is expected")
        if list(form.terms.values()) == [1.0] and self.symbols[self._symbol(form)].kind != "noise":
            return form
        if not all(map(math.isfinite, form.terms.values())):
            raise ZeroDivisionError("a coefficient is not finite")
        return self._new(_Symbol("value", len(self.barriers), form))

    def _call(self, x: LinearForm, s: Point, guided: bool, variance: bool) -> tuple[LinearForm, LinearForm]:
        call = Call(-1, s, self.prediction.time(self.schedule, s), guided, self.step)
        learned = len(self.symbols) if variance else None
        if variance:
            self._new(_Symbol("variance", len(self.barriers) + 1))
        self.barriers.append(_Barrier((self._symbol(x),), call, learned))
        self._learned = learned
        out = self._new(_Symbol("output", len(self.barriers)))
        return out, self._new(_Symbol("conditional", len(self.barriers))) if guided else out

    def _variance(self) -> LinearForm:
        assert self._learned is not None
        return LinearForm({self._learned: 1.0})

    def _evaluate_gradient(self, name: str, x: LinearForm, s: Point) -> LinearForm:
        call = Call(-1, s, self.prediction.time(self.schedule, s), False, self.step, network=name)
        self.barriers.append(_Barrier((self._symbol(x),), call))
        return self._new(_Symbol("output", len(self.barriers)))

    def _new(self, symbol: _Symbol) -> LinearForm:
        self.symbols.append(symbol)
        return LinearForm({len(self.symbols) - 1: 1.0})

    @staticmethod
    def _symbol(form: LinearForm) -> int:
        return next(iter(form.terms))


def trace(
    solver: Solver | str,
    schedule: Schedule | str,
    times: Sequence[float] | Float64Array,
    prediction: Prediction | str,
    *,
    guidance: Guidance | None = None,
    threshold: Threshold | None = None,
    keep_states: bool = False,
) -> Program:
    """The Program of a solver on a grid.

    times: decreasing schedule times, from where the initial state is to where the sample is. guidance: mixes the
    conditional and the unconditional output, or adds a classifier's gradient, in the coefficients. threshold: limits
    x0. schedule, prediction, guidance, threshold: as in `fastdiff.sample`, names and numbers too; guidance with one
    scale. keep_states: also hold the state after every step in a buffer, for callbacks. `fastdiff.run` runs it.

    Raises TypeError for a step that is not linear, ValueError for one that divides by zero or does not give finite
    coefficients, and for a grid that does not suit the solver.
    """
    solver, schedule, prediction = get_solver(solver), get_schedule(schedule), get_prediction(prediction)
    guidance, threshold = make_guidance(guidance), make_threshold(threshold)
    keep_states = flag("keep_states", keep_states)
    times = _vector(times)
    model = _Tracer(schedule, prediction, guidance, threshold)
    noise = {"noise": model.noise} if solver.stochastic else {}
    history: deque = deque(maxlen=solver.history)
    x, states = LinearForm({0: 1.0}), []
    model.grid = schedule.points(times)
    intervals = solver.intervals(model.grid)
    model.steps = len(intervals)
    for model.step, (s, *model.inner, t) in enumerate(intervals):
        try:
            made = solver.step(model, x, s, t, history, **solver.options, **noise)
            if made is None:
                raise TypeError(f"the step of solver {solver.name!r} returned nothing; it must return the state at t")
            x = model.close(made)
        except (ZeroDivisionError, OverflowError, ValueError) as error:
            if isinstance(error, ValueError) and not str(error).startswith("math domain"):
                raise
            if (reason := prediction.silent(s)) is not None:
                raise ValueError(reason) from error
            options = f" with {solver.options}" if solver.options else ""
            step = f"from t={s.t:g} to t={t.t:g} of {schedule.name}"
            if s.alpha == 0:
                step += ", where alpha is 0; begin later, or take a solver like 'ddim' or 'dpmpp-2m'"
            raise ValueError(f"solver {solver.name!r}{options} cannot step {step}") from error
        states.append(next(iter(x.terms)))
    return _lower(solver.name, model, states, keep_states)


def _vector(times: Sequence[float] | Float64Array) -> Float64Array:
    """The times as an array. Raises TypeError or ValueError for what is no row of them."""
    try:
        found = np.asarray(times, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"times must be a row of schedule times, got {described(times)}") from None
    expect(found.ndim == 1 and found.size >= 2, f"times must be two times or more, got shape {found.shape}")
    return found


_IN_A_BUFFER = ("initial", "variance", "tensor")  # without a combine that computes them


# ---- lowering: which symbols need a buffer, and which one -----------------------------------------------------------


def _lower(name: str, tracer: _Tracer, states: Sequence[int], keep_states: bool) -> Program:
    symbols, barriers = tracer.symbols, tracer.barriers
    last_epoch = len(barriers)

    # Backwards: what each epoch must leave in a buffer (as sums of what is there then), and until which epoch.
    until = {0: 0}  # the initial state is in a buffer from the start
    made: list[dict[int, dict[int, float]]] = [{} for _ in range(last_epoch + 1)]  # epoch -> symbol -> its sum

    def keep(symbol: int, epoch: int) -> None:
        until[symbol] = max(until.get(symbol, epoch), epoch)
        if symbols[symbol].kind not in _IN_A_BUFFER:  # which are in a buffer as it is
            made[symbols[symbol].epoch].setdefault(symbol, {})

    for epoch, barrier in enumerate(barriers):
        for symbol in barrier.inputs:
            keep(symbol, epoch + 1)
    for symbol in states if keep_states else ():
        keep(symbol, symbols[symbol].epoch)
    keep(states[-1], last_epoch + 1)
    for epoch in range(last_epoch, -1, -1):
        for symbol in made[epoch]:
            made[epoch][symbol] = terms = _expand(symbols, symbol, epoch)
            for leaf in terms:
                kind = symbols[leaf].kind
                if kind in _IN_A_BUFFER or (kind != "noise" and symbols[leaf].epoch < epoch):
                    keep(leaf, epoch)

    # Forwards: a buffer for each of them, free again after its last use (an output may replace it in that very pass).
    slot_of, written_at = {0: 0}, {0: -1}
    slot_of |= {symbol: slot for slot, symbol in enumerate(tracer.tensors.values(), 1)}  # never free
    released: list[list[int]] = [[] for _ in range(last_epoch + 2)]  # epoch -> slots whose last use it is
    released[until[0]].append(0)
    instructions: list[Instruction] = []
    free: list[int] = []
    num_slots = 1 + len(tracer.tensors)

    def take() -> int:
        nonlocal num_slots
        if free:
            return free.pop(0)
        num_slots += 1
        return num_slots - 1

    for epoch in range(last_epoch + 1):
        free += released[epoch]
        outputs = [(symbol, take(), terms) for symbol, terms in sorted(made[epoch].items())]
        if outputs:  # all of them read what was there before any is written
            instructions.append(
                Combine(tuple(Output(slot, _sources(tracer, terms, epoch, slot_of)) for _, slot, terms in outputs))
            )
        for symbol, slot, _ in outputs:
            slot_of[symbol], written_at[symbol] = slot, len(instructions) - 1
            released[max(until[symbol], epoch + 1)].append(slot)
        if epoch < last_epoch:
            barrier = barriers[epoch]
            slots = tuple(slot_of[symbol] for symbol in barrier.inputs)
            if isinstance(barrier.instruction, Apply):
                instructions.append(replace(barrier.instruction, inputs=slots))
                continue
            variance = None
            if barrier.variance is not None and barrier.variance in until:  # somebody reads it
                slot_of[barrier.variance] = variance = take()
                released[max(until[barrier.variance], epoch + 1)].append(variance)
            c = barrier.instruction
            instructions.append(Call(slots[0], c.point, c.model_time, c.guided, c.step, c.network, variance))
    kept = tuple((written_at[s], slot_of[s]) for s in states) if keep_states else ()
    return Program(
        name,
        tuple(instructions),
        num_slots,
        slot_of[states[-1]],
        tracer.num_noises,
        kept,
        split_output=tracer.prediction.split,
        tensors=tuple((name, slot_of[symbol]) for name, symbol in tracer.tensors.items()),
    )


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
    sources: dict[Source, float] = {}

    def add(source: Source, coefficient: float) -> None:
        sources[source] = sources.get(source, 0.0) + coefficient

    for symbol, coefficient in terms.items():
        what = tracer.symbols[symbol]
        if what.kind == "noise":
            add(("noise", what.number), coefficient)
        elif what.kind in ("output", "conditional") and what.epoch == epoch:
            call = tracer.barriers[epoch - 1].instruction
            if what.kind == "output" and isinstance(call, Call) and call.guided:
                assert tracer.cfg is not None
                add(("cond", 0), coefficient * tracer.cfg.single)
                add(("uncond", 0), coefficient * (1 - tracer.cfg.single))
            else:
                add(("cond", 0), coefficient)
        else:
            add(("buffer", slot_of[symbol]), coefficient)
    return tuple(sources.items())
