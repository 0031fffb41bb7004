"""The engine of a GPU and its graphs on the CPU: the kernels' own function runs there, a tape takes a graph's place."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff
from fastdiff import sample
from fastdiff.engine import bound, loop, steps
from fastdiff.engine.steps import NativeSteps
from fastdiff.runtime import choice, graphs
from fastdiff.schedules import VPDiscrete

VP = VPDiscrete.linear()
COMMON = dict(schedule=VP, prediction="eps", steps=6)


class Tape(TorchDispatchMode):
    """In the place of a CUDA graph: what a function does to memory, to be done again without Python's part of it.

    A capture does run the operators, as the tape needs their results' shapes; `poison` then destroys what they left."""

    current: "Tape | None" = None
    device_type = "cpu"

    def __init__(self, device):
        super().__init__()
        self.entries = []
        self.results = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        result = function(*args, **kwargs)
        tensors = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if torch.is_tensor(t)]
        fresh = [t for t in tensors if t.untyped_storage().data_ptr() not in given]
        self.results += fresh
        if tensors and not fresh and function._schema.is_mutable:
            self.entries.append(lambda: function(*args, **kwargs))
        elif fresh:

            def again():
                made = function(*args, **kwargs)
                for target, value in zip(tensors, made if isinstance(made, (tuple, list)) else [made]):
                    target.copy_(value)

            self.entries.append(again)
        return result

    def capture(self, body):
        Tape.current = self
        try:
            with self:
                body()
        finally:
            Tape.current = None
        for result in self.results:
            if result.is_floating_point():
                result.fill_(math.nan)

    def replay(self):
        for entry in self.entries:
            entry()


class TapedSteps(NativeSteps):
    def run(self, number, cond, uncond):
        super().run(number, cond, uncond)
        if Tape.current is not None:
            Tape.current.entries.append(lambda: NativeSteps.run(self, number, cond, uncond))


def take_the_place_of_cuda(monkeypatch):
    """Runs under use("auto") take the device's engine, and tapes are its graphs."""
    choose_engine = bound.choose_engine
    monkeypatch.setattr(
        loop, "choose_engine", lambda p, x: "device" if choice.current() == "auto" else choose_engine(p, x)
    )
    monkeypatch.setattr(steps, "choose", lambda device: (TapedSteps, ""))
    monkeypatch.setattr(graphs, "graph_type", Tape)


def both(*arguments, **options):
    """The sample of this engine, and that of the reference engine."""
    ours = sample(*arguments, **options)
    with fastdiff.use("reference"):
        return ours, sample(*arguments, **options)
