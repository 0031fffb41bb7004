"""The weights of a scheduler's step, measured: the step of diffusers is run on unit vectors.

A step of most solvers is linear in the sample, the model's output, the noise and what was kept of earlier steps; the
configuration and the place in the loop only decide the weights. So the weights are read off the original's own step,
run once on a batch whose k-th sample is 1 in the k-th tensor and 0 in the others. Further samples hold random numbers:
where the sums do not give what the step gave, it is not linear, and stays with diffusers. Two things that are not
linear are known: clipping, after which the clipped tensor counts as a further one, and drawing noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdiff.integrations.diffusers.step import Clip, Draw, Place, Sizes, Step, Sums

_EVENTS = 4  # that a step may have, draws and clips
_CHECKS = (1.0, 1e-2, 30.0, 1e3)  # sizes of the random numbers, a sample each
_HALF_CHECKS = (1.0, 0.1, 3.0, 10.0)
_WIDE = {torch.float32, torch.float64}
_GENERATOR = torch.Generator("cpu")  # nothing is drawn from it
_CLAMPS = (torch.clamp, torch.clip, Tensor.clamp, Tensor.clip)
_RANDOM = {
    torch.rand, torch.rand_like, torch.randint, torch.randint_like, torch.randperm, torch.normal, torch.bernoulli,
    torch.multinomial, Tensor.normal_, Tensor.uniform_, Tensor.random_, Tensor.bernoulli_, Tensor.exponential_,
}  # fmt: skip
PLAIN = (int, float, bool, str, type(None))


class NotMeasurableError(Exception):
    """Why a step cannot be written as weighted sums."""


@dataclass(frozen=True)
class Request:
    """A call of a step. tail: of the samples' shape, without the batch. options: beside the tensors, with the timestep.
    sample, output: dtypes; generator: whether one is given; on_cpu: whether the samples are."""

    original: type
    tail: tuple[int, ...]
    sample: torch.dtype
    output: torch.dtype
    options: dict[str, Any]
    generator: bool
    on_cpu: bool


class _Probe(TorchFunctionMode):
    """Tensors of unit vectors, and what a step does with them. It sees the calls of its own thread only."""

    def __init__(self, known: int, tail: tuple[int, ...], half: bool) -> None:
        super().__init__()
        self.units, self.half, self.checks = known + _EVENTS, half, _HALF_CHECKS if half else _CHECKS
        self.shape = torch.Size((self.units + len(self.checks), *tail))
        self.inputs: list[Tensor] = []
        self.values: list[Tensor] = []  # of the inputs, which a step may change
        self.events: list[tuple[Any, ...]] = []

    def add(self, dtype: torch.dtype, values: Tensor | None = None) -> Tensor:
        """The next unit vector; values: for the samples that check, in place of random ones."""
        k = len(self.inputs)
        if k == self.units:
            raise NotMeasurableError("draws and clips more often than a step of a known solver")
        x = torch.zeros(self.shape, dtype=dtype, device="cpu")
        x[k] = 1
        if values is None:
            shape = (len(self.checks), *self.shape[1:])
            noise = np.random.default_rng(k).standard_normal(shape).T * self.checks
            values = torch.from_numpy(noise.T)
        x[self.units :] = values
        self.inputs.append(x)
        self.values.append(x[self.units :].double().flatten(1).clone())
        return x

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            size = args[0] if args and isinstance(args[0], (tuple, list)) else args
            return self._draw(tuple(size), kwargs.get("dtype"), kwargs.get("generator"))
        if func is torch.randn_like:
            return self._draw(args[0].shape, kwargs.get("dtype") or args[0].dtype, kwargs.get("generator"))
        if func in _RANDOM:
            raise NotMeasurableError("draws other random numbers than normal ones")
        if func in _CLAMPS and args[0].shape == self.shape:
            return self._clip(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _draw(self, shape: tuple[int, ...], dtype: torch.dtype | None, generator: Any) -> Tensor:
        if tuple(shape) != tuple(self.shape):
            raise NotMeasurableError("draws noise of another shape than the sample's")
        self.events.append((Draw(dtype, generator is _GENERATOR),))
        return self.add(dtype or torch.get_default_dtype())

    def _clip(self, func: Any, x: Tensor, min: Any = None, max: Any = None) -> Tensor:  # torch's names
        if any(isinstance(bound, Tensor) and bound.dim() > 0 for bound in (min, max)):
            return func(x, min, max)  # type: ignore[no-any-return]  # not linear, as will be found
        low, high = (None if bound is None else float(bound) for bound in (min, max))
        self.events.append((x, low, high))
        return self.add(x.dtype, func(x[self.units :], min, max))

    def weights(self, x: Tensor) -> list[float]:
        """Of each input in a tensor that the step made of them."""
        if x.shape != self.shape:
            raise NotMeasurableError("gives tensors of another shape than the sample's")
        wide = x.double().flatten(1)
        found = wide[: self.units, 0]
        if not wide.isfinite().all():
            raise NotMeasurableError("gives values that are not finite")
        bound = 5e-2 if self.half else 1e-3  # the step's own rounding; what is not linear is further off
        if not (abs(wide[: self.units] - found[:, None]) <= bound * abs(found).max()).all():
            raise NotMeasurableError("treats the elements of a sample differently")
        terms = found[: len(self.values), None, None] * torch.stack(self.values)
        largest = abs(terms).sum(0).amax(1, keepdim=True)
        if not (abs(wide[self.units :] - terms.sum(0)) <= bound * largest).all():
            raise NotMeasurableError("is not a weighted sum")
        return [float(weight) for weight in found[: len(self.values)]]


class _Run:
    """One run of the step on unit vectors, in these dtypes of sample, output and kept tensors."""

    def __init__(self, request: Request, attributes: dict[str, Any], dtypes: list[torch.dtype]) -> None:
        self.probe = probe = _Probe(len(dtypes), request.tail, not {*dtypes} <= _WIDE)
        sample, output, *kept = [probe.add(dtype) for dtype in dtypes]
        waiting = iter(kept)
        before = {name: _replaced(value, waiting) for name, value in attributes.items()}
        scheduler: Any = object.__new__(request.original)
        # Lists are changed in place.
        scheduler.__dict__.update({k: list(v) if type(v) is list else v for k, v in before.items()})
        given = {**request.options, "model_output": output, "sample": sample}
        if request.generator:
            given["generator"] = _GENERATOR
        versions = [tensor._version for tensor in probe.inputs]
        with probe:
            result = request.original.step(scheduler, **given)  # type: ignore[attr-defined]
        self.changed = {id(x) for x, version in zip(probe.inputs, versions) if x._version != version}
        if {id(sample), id(output)} & self.changed:
            raise NotMeasurableError("changes its arguments in place")
        fields = {str(k): v for k, v in enumerate(result)} if isinstance(result, tuple) else {**vars(result)}
        self.result = (tuple if isinstance(result, tuple) else type(result), fields)
        after = vars(scheduler)
        if before.keys() - after.keys():
            raise NotMeasurableError("deletes attributes")
        self.changes = {name: value for name, value in after.items() if self._differs(value, before.get(name, self))}

    def _differs(self, value: Any, before: Any) -> bool:
        if type(value) in (list, tuple) and type(value) is type(before) and len(value) == len(before):
            return any(map(self._differs, value, before))
        return value is not before or id(value) in self.changed

    def tensors(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        """What is returned and kept and has the form of a sample, each by the place where it is."""
        yield from _tensors((), {**self.result[1]})
        yield from _tensors(("",), self.changes)

    def is_input(self, x: Tensor) -> int | None:
        """The number of the input that this tensor is, unchanged."""
        return next((k for k, y in enumerate(self.probe.inputs) if y is x and id(x) not in self.changed), None)


def measure(request: Request, attributes: dict[str, Any], kept: list[torch.dtype]) -> Step:
    """What the original's step does in this state.

    attributes: of the scheduler; kept: dtypes of the tensors among them that have the form of a sample, in order.
    Raises NotMeasurableError if it is no weighted sums, and what the step itself raises.
    """
    dtypes = [request.sample, request.output, *kept]
    with torch.inference_mode(False), torch.no_grad():
        run = _Run(request, attributes, dtypes)
        exact = run  # rounded as diffusers rounds it, but not to half precision
        if run.probe.half:
            wide = [torch.promote_types(dtype, torch.float32) for dtype in dtypes]
            exact = _Run(request, attributes, wide)
            if len(exact.probe.events) != len(run.probe.events):
                raise NotMeasurableError("depends on the dtype")
        return _step(run, exact, request.on_cpu)


def _step(run: _Run, exact: _Run, on_cpu: bool) -> Step:
    probe = run.probe
    events: list[Draw | Clip] = []
    types = [x.dtype for x in probe.inputs]
    for event, wide in zip(probe.events, exact.probe.events):
        if isinstance(event[0], Draw):
            events.append(event[0])
            continue
        probe.weights(event[0])  # checks
        row, x, low, high = exact.probe.weights(wide[0]), *event
        events.append(Clip(Sums.of([row], types, on_cpu, [x.dtype]), low, high))
    found = dict(exact.tensors())
    rows: dict[int, tuple[int, list[float], torch.dtype]] = {}
    for path, x in run.tensors():
        probe.weights(x)  # checks
        if run.is_input(x) is None and id(x) not in rows:
            place = len(types) + len(rows)
            rows[id(x)] = place, exact.probe.weights(found[path]), x.dtype
    sums = None
    if rows:
        sums = Sums.of([row for _, row, _ in rows.values()], types, on_cpu, [dtype for _, _, dtype in rows.values()])

    def recipe(value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(map(recipe, value))
        if isinstance(value, Tensor) and value.dim() > 1:
            number = run.is_input(value)
            return Place(rows[id(value)][0] if number is None else number)
        if type(value) is torch.Size and value == probe.shape[2:]:
            return Sizes()
        if not isinstance(value, (*PLAIN, Tensor, np.ndarray, np.generic)):
            raise NotMeasurableError(f"keeps an object of the type {type(value).__name__}")
        return value

    kind, fields = run.result
    result = kind, {name: recipe(value) for name, value in fields.items()}
    changes = {name: recipe(value) for name, value in run.changes.items()}
    values = {name: value for name, value in changes.items() if isinstance(value, (*PLAIN, Tensor, np.ndarray))}
    return Step(tuple(events), sums, result, values, {k: v for k, v in changes.items() if k not in values})


def is_sample(value: Any) -> bool:
    """Whether an attribute is a tensor of the form of a sample. What holds a number for each step has one dimension."""
    return isinstance(value, Tensor) and value.dim() > 1


def _replaced(value: Any, units: Iterator[Tensor]) -> Any:
    """An attribute with unit vectors in place of what has the form of a sample, on the CPU."""
    if type(value) in (list, tuple):
        return type(value)(_replaced(each, units) for each in value)
    if is_sample(value):
        return next(units)
    return value.cpu() if isinstance(value, Tensor) else value


def _tensors(path: tuple[Any, ...], value: Any) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    if is_sample(value):
        yield path, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _tensors((*path, name), each)
    elif type(value) in (list, tuple):
        for number, each in enumerate(value):
            yield from _tensors((*path, number), each)
