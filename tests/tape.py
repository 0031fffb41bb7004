"""The engine of a GPU and its graphs on the CPU: the kernels' own function runs there, a tape takes a graph's place."""

from graph_stand_in import StandIn

import fastdiff
from fastdiff import sample
from fastdiff.engine import bound, loop, steps
from fastdiff.engine.steps import NativeSteps
from fastdiff.program import KINDS
from fastdiff.runtime import choice, graphs
from fastdiff.schedules import VPDiscrete

VP = VPDiscrete.linear()
COMMON = dict(schedule=VP, prediction="eps", steps=6)
_BUFFER = KINDS.index("buffer")


class TapedSteps(NativeSteps):
    """A solver's step, of which no dispatcher knows. What it reads and writes it is told by addresses."""

    def __init__(self, state, model, batch, elements, keys, broken):
        super().__init__(state, model, batch, elements, keys, broken)
        self._common = {"keys": keys.data_ptr(), "broken": broken.data_ptr()}
        self._memory = []

    def add(self, kinds, numbers, outputs, coefficients):
        super().add(kinds, numbers, outputs, coefficients)
        found = {"coefficients": coefficients.data_ptr(), **self._common}
        found |= {f"input {k}": n for k, (kind, n) in enumerate(zip(kinds, numbers)) if kind == _BUFFER}
        found |= {f"output {m} {k}": n for m, part in enumerate(outputs) for k, n in enumerate(part) if n}
        self._memory.append(found)

    def run(self, number, cond, uncond):
        tape = StandIn.current()
        if tape is None:
            super().run(number, cond, uncond)
        else:
            plan = self._plan  # which holds no tensor
            tape.note(lambda *outputs: _run(plan, number, outputs), (cond, uncond), self._memory[number])


def _run(plan, number, outputs):
    assert plan.run(number, *(0 if out is None else out.data_ptr() for out in outputs), 0) == 0


def take_the_place_of_cuda(monkeypatch):
    """Runs under use("auto") take the device's engine, and tapes are its graphs."""
    choose_engine = bound.choose_engine
    monkeypatch.setattr(
        loop, "choose_engine", lambda p, x: "device" if choice.current() == "auto" else choose_engine(p, x)
    )
    monkeypatch.setattr(steps, "choose", lambda device: (TapedSteps, ""))
    monkeypatch.setattr(graphs, "graph_type", StandIn)


def both(*arguments, **options):
    """The sample of this engine, and that of the reference engine."""
    ours = sample(*arguments, **options)
    with fastdiff.use("reference"):
        return ours, sample(*arguments, **options)
