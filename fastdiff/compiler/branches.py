"""Which of a model's calls belong together: those of one run of a sampling loop, with the same conditions.

What is kept of a call is for the next call of its branch: the same run, thread, shapes and conditions. So a conditional
and an unconditional call keep apart, and a batch of both is one branch.

A run is known where `fastdiff.sample` or a pipeline of diffusers makes it, and begins where `reset` says so. Elsewhere
the time tells: it falls in a run (or rises in all runs), and a run begins where it goes back. The value of a time on a
GPU is waited for, unless runs are known.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from fastdiff.compiler.arguments import shapes
from fastdiff.runtime import graphs, runs
from fastdiff.runtime.reuse import Caching

# Names of the argument that is the time, in the models that are known.
_TIMES = ("t", "timestep", "timesteps", "time", "times", "sigma", "sigmas", "noise_labels", "noise_level", "c_noise")
_NOT_CONDITIONS = ("residual", "controlnet")  # features that another network makes anew for each step
_LARGEST = 8 << 20  # bytes of a condition that is compared by its values, on the CPU
_BRANCHES = 8  # of a run
_off: ContextVar[bool] = ContextVar("reuse_off", default=False)


@contextmanager
def without_reuse() -> Iterator[None]:
    """Inside the block, in this thread, all is computed, and nothing is kept of it."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


class Branch:
    """Calls with the same shapes and conditions. kept: what each captured graph keeps of them."""

    def __init__(self, given: Any, conditions: list[Tensor]) -> None:
        self._given, self._conditions = given, [*map(_Condition, conditions)]
        self.kept: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self.used = False

    def takes(self, given: Any, conditions: list[Tensor]) -> bool:
        """Whether a call with these belongs to it."""
        if given != self._given or len(conditions) != len(self._conditions):
            return False
        return all(known.is_still(x) for known, x in zip(self._conditions, conditions))


class _Condition:
    """A condition as it was: by its values on the CPU, elsewhere by its memory, which is held so that no other tensor
    gets it."""

    def __init__(self, x: Tensor) -> None:
        self._tensor, self._place = x, _place(x)
        self._values = x.clone() if x.is_cpu and x.nbytes <= _LARGEST else None

    def is_still(self, x: Tensor) -> bool:
        if self._values is not None:
            return x.is_cpu and x.dtype is self._values.dtype and x.equal(self._values)
        return self._place == _place(x)


def _place(x: Tensor) -> Any:
    version = -1 if x.is_inference() else x._version  # PyTorch counts no changes of inference tensors
    return x.data_ptr(), version, x.shape, x.stride(), x.dtype, x.device


class _Thread(threading.local):
    """The run of this thread. told: which `reset` it is after. known: whether something beside the time says where runs
    begin. against: how many times in a row the time went back."""

    def __init__(self) -> None:
        self.run: object = None
        self.token: tuple[Any, ...] = ()
        self.told = -1
        self.known = False
        self.time: float | None = None
        self.against = 0
        self.branches: list[Branch] = []
        self.branch: Branch | None = None


class Branches:
    """The branches of a model's calls. token: gives objects that are others in each run; none where nobody knows."""

    def __init__(self, rule: Caching, module: nn.Module, token: Callable[[], tuple[Any, ...]] | None = None) -> None:
        self.rule, self._token = rule, token
        self.recorder: Any = None  # of a calibration, in which nothing is reused
        self._names = [*inspect.signature(module.forward).parameters]
        self._here = _Thread()
        self._told = 0
        self._rising = False  # whether the time rises in a run
        self.notes: dict[str, None] = {}
        self.reused = 0  # calls
        self.dropped = 0

    @property
    def current(self) -> Branch | None:
        """That of the call which is under way in this thread; None where nothing is kept."""
        return self._here.branch

    def reset(self) -> None:
        """A run begins with the next call, in every thread."""
        self._told += 1

    @contextmanager
    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        """The block is a call of the model with these arguments."""
        self._here.branch = None if _off.get() else self._find(args, kwargs)
        try:
            yield
        finally:
            self._here.branch = None

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Branch | None:
        here = self._here
        named = dict(zip([*self._names, *map(str, range(len(self._names), len(args)))], args)) | kwargs
        sample = next(iter(self._names), "")
        time = next((name for name in _TIMES if name in named and name != sample), None)
        if not self._continues(None if time is None else named[time]):
            here.branches.clear()
        if here.time is None and not here.known:
            return None
        conditions: list[Tensor] = []
        for name, x in named.items():
            if name not in (sample, time) and not any(word in name for word in _NOT_CONDITIONS):
                conditions += _conditions(x)
        given = shapes(args, kwargs), _dtype(named.get(sample))
        branch = next((each for each in here.branches if each.takes(given, conditions)), None)
        if branch is None:
            branch = Branch(given, conditions)
        else:
            branch.used = True
            here.branches.remove(branch)
        here.branches.append(branch)
        if len(here.branches) > _BRANCHES:
            self.dropped += not here.branches.pop(0).used
        return branch

    def _continues(self, given: Any) -> bool:
        """Whether this call is of the run of the call before."""
        here, run = self._here, runs.current()
        token = self._token() if run is None and self._token is not None else ()
        same = run is here.run and here.told == self._told
        same = same and len(token) == len(here.token) and all(a is b for a, b in zip(token, here.token))
        here.known = run is not None or bool(self._told or token)
        if not same:
            here.run, here.told, here.token, here.time, here.against = run, self._told, token, None, 0
        if run is not None:
            return same
        before, here.time = here.time, self._read(given)
        if before is None or here.time is None or before == here.time:
            return same
        if (here.time > before) == self._rising:
            here.against = 0
            return same
        here.against += 1
        if here.against == 2:  # in a row: this is the way it goes
            self._rising, here.against = not self._rising, 0
        return False

    def _read(self, given: Any) -> float | None:
        """The first of the times, where it may be read."""
        known = self._here.known
        if isinstance(given, (int, float, np.generic)):
            return float(given)
        if isinstance(given, Tensor) and given.numel():
            if given.is_cpu or not (known or graphs.capturing()):
                if not given.is_cpu:
                    self._note("the time is on a GPU and waited for: fastdiff.caching.reset(model) before each run "
                               "spares that")  # fmt: skip
                return float(given.detach().flatten()[0])
        elif not known:
            self._note("nothing says where a run begins, as no argument is known to be the time: all calls are full "
                       "until fastdiff.caching.reset(model) is called before each run")  # fmt: skip
        return None

    def _note(self, note: str) -> None:
        self.notes[note] = None

    def forget(self) -> None:
        """Keep nothing of the calls until now."""
        self._here = _Thread()


def branches_of(model: Any) -> list[Branches]:
    """Of a module and its parts, or of the modules of a pipeline of diffusers."""
    held = model.components if isinstance(getattr(model, "components", None), dict) else {"": model}
    modules = (part for each in held.values() if isinstance(each, nn.Module) for part in each.modules())
    found = (getattr(part._compiled_call_impl, "branches", None) for part in modules)
    return [*dict.fromkeys(each for each in found if isinstance(each, Branches))]


def _conditions(x: Any) -> Iterator[Tensor]:
    """The tensors of up to three dimensions, also those in lists and dictionaries; features of a picture have more."""
    if isinstance(x, Tensor):
        if x.ndim <= 3:
            yield x
    elif isinstance(x, (list, tuple)):
        for each in x:
            yield from _conditions(each)
    elif isinstance(x, dict):
        for name, each in x.items():
            if not any(word in str(name) for word in _NOT_CONDITIONS):
                yield from _conditions(each)


def _dtype(x: Any) -> Any:
    return x.dtype if isinstance(x, Tensor) else None
