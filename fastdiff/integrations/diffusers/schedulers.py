"""Schedulers of diffusers whose steps run in one pass over memory, by weights measured from diffusers' own step."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from torch.compiler import is_compiling

from fastdiff.integrations.diffusers import state
from fastdiff.integrations.diffusers.measuring import NotMeasurableError, Request, measure
from fastdiff.integrations.diffusers.state import Memory
from fastdiff.integrations.diffusers.step import Step
from fastdiff.runtime.dispatcher import transformed

_TRIAL_STEPS = 6, 2  # some take two at most


class SolverScheduler:
    """Beside a scheduler class of diffusers, in a subclass that `scheduler_for` makes: `step` in one pass.

    All but `step` is the original's: attributes, configuration, name, copies, what is saved. The first step in a state
    (place in the loop, options, dtypes) measures the weights, later ones use them. What cannot be measured runs by the
    original's step, on the same attributes: samples of fewer than two dimensions, unusual strides, tensors as options.
    """

    original: type  # of the subclass

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (self.original, {k: v for k, v in vars(self).items() if k != state.NAME})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = same = _restored(self.original, {})
        vars(same).update(copy.deepcopy(vars(self), memo))  # the memory is shared
        return same

    def _measured(self, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a step returns, or None if the original's should run."""
        if is_compiling() or transformed() is not None:
            return None
        given = dict(zip(names, args))
        given.update(kwargs)
        output, sample = given.pop("model_output", None), given.pop("sample", None)
        if type(output) is not Tensor or type(sample) is not Tensor or len(args) + len(kwargs) != len(given) + 2:
            return None
        attributes = self.__dict__
        memory = attributes.get(state.NAME)
        if memory is None:
            memory = attributes[state.NAME] = Memory()
        found = _found(self, memory, given, output, sample)
        if type(found) is str:
            memory.left[found] += 1
            return None
        step, kept, generator = found
        memory.taken += 1
        return step(attributes, [sample, output, *kept], generator)


def _found(self: Any, memory: Memory, given: dict[str, Any], output: Tensor, sample: Tensor) -> Any:
    """(the step, what the scheduler keeps, the generator), or why the original's step must run."""
    shape = sample.shape
    if output.shape != shape or len(shape) < 2 or output.device != sample.device:
        return "sample and model output differ in shape or device, or have no batch"
    attributes = self.__dict__
    generator = given.pop("generator", None)
    options = []
    for name, value in given.items():
        number = state.number(value, memory, attributes)
        if number is None:
            return f"{name} is not a number"
        options.append((name, number))
    read = state.read(attributes, memory, sample)
    if read is None:
        return "the scheduler keeps tensors of another shape, or objects"
    key, kept = read
    for x in (sample, output, *kept):
        if not (x.is_contiguous() or _in_order(x)):
            return "strides of a tensor are in another order than its dimensions"
    call = (*options, generator is None, shape[1], len(shape), sample.dtype, output.dtype, sample.is_cpu)
    found = (*key, *call)
    step = memory.steps.get(found)
    if step is None:
        tail = (shape[1], *[2] * (len(shape) - 2))
        arguments = {name: state.argument(*number) for name, number in options}
        request = Request(
            self.original, tail, sample.dtype, output.dtype, arguments, generator is not None, sample.is_cpu
        )
        step = _measure(request, attributes, kept)
        memory.learn(step)
        key, _ = state.read(attributes, memory, sample)  # type: ignore[misc]  # by what was learnt
        found = (*key, *call)
        memory.steps[found] = step
    return step if type(step) is str else (step, kept, generator)


def _measure(request: Request, attributes: dict[str, Any], kept: list[Tensor]) -> Step | str:
    attributes = {name: value for name, value in attributes.items() if name != state.NAME}
    try:
        return measure(request, attributes, [x.dtype for x in kept])
    except NotMeasurableError as error:
        return f"the step {error}"
    except Exception as error:  # the original's step will raise it
        return f"the step raised {type(error).__name__}"


def _in_order(x: Tensor) -> bool:
    """Whether what is computed of x elementwise is contiguous."""
    strides = [stride for stride, size in zip(x.stride(), x.shape) if size > 1]
    return strides == sorted(strides, reverse=True) and 0 not in strides


def scheduler_for(scheduler: Any) -> tuple[SolverScheduler | None, str]:
    """A copy of a scheduler of diffusers whose steps run in one pass, or None; and what it does, or why there is none.

    Tried on a loop of a few steps: there is none where most are not linear and not clipping either (thresholding), or
    draw other noise than of the sample's shape.
    """
    name = type(scheduler).__name__
    if isinstance(scheduler, SolverScheduler):
        return scheduler, f"{name}, steps in one pass"
    if type(scheduler).__module__.split(".")[0] != "diffusers" or not isinstance(scheduler, SchedulerMixin):
        return None, f"{name} is not a scheduler of diffusers"
    reason = _reason(scheduler)
    if reason is None:
        return _restored(type(scheduler), _copied(vars(scheduler))), f"{name}, steps in one pass"
    return None, f"{name}{_setting(scheduler)}: {reason}"


def explained(scheduler: Any) -> str:
    """What `fastdiff.explain` says of a scheduler: whether its steps run in one pass, how many did, and why not."""
    name = type(scheduler).__name__
    if not isinstance(scheduler, SolverScheduler):
        possible, reason = scheduler_for(scheduler)
        return f"not optimized, though it could be: {name}" if possible is not None else f"left to diffusers: {reason}"
    memory = vars(scheduler).get(state.NAME) or Memory()
    left = "".join(f"; {count} by diffusers: {reason}" for reason, count in memory.left.items())
    return f"{name}, steps in one pass; {memory.taken} until now{left}"


def original_of(scheduler: SolverScheduler, original: Any = None) -> Any:
    """The scheduler of diffusers with this one's attributes: `original`, or a new one."""
    found = object.__new__(scheduler.original) if original is None else original
    vars(found).update({name: value for name, value in vars(scheduler).items() if name != state.NAME})
    return found


@functools.cache
def _subclass(original: type) -> type:
    names = list(inspect.signature(original.step).parameters)[1:]  # type: ignore[attr-defined]
    members = {"step": _step(original.step, names), "original": original}  # type: ignore[attr-defined]
    # diffusers writes name and module into files.
    members |= {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    return type(original.__name__, (SolverScheduler, original), members)


def _step(plain: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    @functools.wraps(plain)  # pipelines look for names in its signature
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = self._measured(names, args, kwargs)
        return plain(self, *args, **kwargs) if result is None else result

    return step


def _restored(original: type, attributes: dict[str, Any]) -> Any:
    scheduler: Any = object.__new__(_subclass(original))
    scheduler.__dict__.update(attributes)
    return scheduler


def _copied(value: Any) -> Any:
    """A deep copy; of results that belong to a graph of gradients too, which `copy` refuses."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is list:
        return [_copied(each) for each in value]
    return {name: _copied(each) for name, each in value.items()} if type(value) is dict else copy.deepcopy(value)


def _reason(scheduler: Any) -> str | None:
    """Why most steps of a loop cannot be measured, or None."""
    names = inspect.signature(type(scheduler).step).parameters if hasattr(type(scheduler), "step") else ()
    if not {"model_output", "timestep", "sample"} <= {*names}:
        return "its step takes other arguments"
    trial = _restored(type(scheduler), _copied(vars(scheduler)))
    memory = vars(trial)[state.NAME] = Memory()
    options = {"generator": torch.Generator("cpu")} if "generator" in names else {}
    x = torch.linspace(-1, 1, 64, dtype=torch.float32, device="cpu").reshape(1, 4, 4, 4)
    try:
        with torch.no_grad():
            _set_steps(trial)
            for t in trial.timesteps:
                y = trial.scale_model_input(x, t) if hasattr(trial, "scale_model_input") else x
                x = trial.step(model_output=0.5 * y, timestep=t, sample=x, **options, return_dict=False)[0]
    except Exception as error:  # any, of any scheduler: it is left as it is
        if not memory.taken:
            return f"a loop ends with {type(error).__name__}: {error}"
    if memory.left.total() < memory.taken:
        return None
    return memory.left.most_common(1)[0][0] if memory.left else "a loop has no steps"


def _set_steps(scheduler: Any) -> None:
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    for steps in _TRIAL_STEPS:
        try:
            return scheduler.set_timesteps(steps, **shift)
        except Exception:  # any, of any scheduler
            if steps == _TRIAL_STEPS[-1]:
                raise


def _setting(scheduler: Any) -> str:
    """The setting that differs from its default and without which the steps could be measured, for messages."""
    config = scheduler.config
    for name, parameter in inspect.signature(type(scheduler).__init__).parameters.items():
        chosen, default = config.get(name), parameter.default
        if name in config and default is not parameter.empty and not _same(chosen, default):
            try:
                plain = type(scheduler).from_config({**config, name: default})
            except Exception:  # settings that do not go together
                continue
            if _reason(plain) is None:
                return f" with {name}={chosen!r}"
    return ""


def _same(setting: Any, default: Any) -> bool:
    """Whether a setting, which may be an array, is the default."""
    return type(setting) is type(default) and bool(setting == default)
