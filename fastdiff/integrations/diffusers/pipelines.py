"""`fastdiff.optimize` of a pipeline: its networks, and its schedulers where their steps run in one pass."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import nn

from fastdiff.compiler.capture import check_passes
from fastdiff.compiler.optimize import optimize_module, refresh_module, restore_module
from fastdiff.compiler.precision import wanted
from fastdiff.integrations.diffusers.schedulers import SolverScheduler, explained, original_of, scheduler_for
from fastdiff.runtime.reuse import Caching

_DENOISERS = ("unet", "transformer", "prior")  # of any class, as custom pipelines have them
_originals: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # of schedulers that `optimize` put in


def models(pipeline: Any) -> dict[str, nn.Module]:
    """The modules of a pipeline that are worth it, each once, by name.

    All of diffusers' networks under any name, and any module by the name of a denoiser. Of an autoencoder its encoder
    and decoder, as that is what is called; of several ControlNets each; of a pipeline inside this one the same.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, value in parts(pipeline):
        if isinstance(value, nn.Module) and (isinstance(value, ModelMixin) or name.split(".")[-1] in _DENOISERS):
            for suffix, module in _called(value):
                found.setdefault(id(module), (name + suffix, module))
    return dict(found.values())


def parts(pipeline: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """What a pipeline and the pipelines inside it hold, by names such as `prior_pipe.prior`."""
    for name, value in list(vars(pipeline).items()):
        if isinstance(value, DiffusionPipeline):
            yield from parts(value, f"{before}{name}.")
        elif not name.startswith("_"):
            yield before + name, value


def _called(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a pipeline calls, of one that it holds, with what follows its name."""
    children = dict(module.named_children())
    (name, nets), *others = children.items() or [("", None)]
    if not others and isinstance(nets, nn.ModuleList) and all(isinstance(net, ModelMixin) for net in nets):
        for number, net in enumerate(nets):  # of several ControlNets or adapters
            yield f".{name}.{number}", net
        return
    coders = [name for name in children if name.startswith(("encoder", "decoder"))]
    if coders and (hasattr(module, "encode") or hasattr(module, "decode")):
        for name in coders:
            yield f".{name}", children[name]
    else:
        yield "", module


def optimize_pipeline(
    pipeline: Any,
    *,
    verify: bool = False,
    disable: Sequence[str] = (),
    precision: str = "float32",
    keep_float32: Sequence[str] = (),
    reuse: Caching | None = None,
) -> Any:
    """See `fastdiff.optimize`. Raises TypeError for a pipeline without a network, or without a denoiser to reuse in."""
    found = models(pipeline)
    if not found:
        raise TypeError(f"optimize() finds no network in {type(pipeline).__name__}: no model of diffusers, and nothing "
                        f"named {', '.join(_DENOISERS)}")  # fmt: skip
    passes = [name for name in disable if name != "scheduler"]
    check_passes(passes)  # before any module is changed
    low = wanted([*found.values()], precision, tuple(keep_float32))
    denoisers = [name for name in found if name.split(".")[-1].rstrip("_0123456789") in _DENOISERS]
    if reuse is not None and not denoisers:
        raise TypeError(
            f"reuse is for what is named {', '.join(_DENOISERS)}, of which {type(pipeline).__name__} has none"
        )
    runs = functools.partial(_timesteps, weakref.ref(pipeline))
    for name, module in found.items():
        rule = reuse if name in denoisers else None
        optimize_module(module, verify=verify, disable=passes, precision=low, reuse=rule, runs=runs)
    if "scheduler" not in disable:
        replaced: dict[int, Any] = {}  # pipelines inside this one share its schedulers
        _exchange(pipeline, lambda scheduler: replaced.setdefault(id(scheduler), _fast(scheduler)))
    return pipeline


def _timesteps(pipeline: weakref.ref[Any]) -> tuple[Any, ...]:
    """The schedulers' times: `set_timesteps`, with which each run begins, makes other tensors. Nothing if it is
    gone."""
    if (found := pipeline()) is None:
        return ()
    times = (getattr(value, "timesteps", None) for _, value in parts(found) if isinstance(value, SchedulerMixin))
    return tuple(each for each in times if each is not None)


def restore_pipeline(pipeline: Any) -> Any:
    """See `fastdiff.restore`."""
    for module in models(pipeline).values():
        restore_module(module)
    _exchange(pipeline, _plain)
    return pipeline


def refresh_pipeline(pipeline: Any) -> Any:
    """See `fastdiff.refresh`: of all modules, also of those that `optimize` leaves."""
    for _, value in parts(pipeline):
        if isinstance(value, nn.Module):
            refresh_module(value)
    return pipeline


def explain_schedulers(pipeline: Any) -> list[str]:
    """Of each scheduler, whether its steps run in one pass, and why not."""
    lines: dict[int, str] = {}
    for name, value in parts(pipeline):
        if isinstance(value, SchedulerMixin):
            lines.setdefault(id(value), f"{name}: {explained(value)}")
    return list(lines.values())


def _exchange(pipeline: Any, other: Any) -> None:
    """Put other(scheduler) in place of each scheduler, if it is another one."""
    for name, value in list(vars(pipeline).items()):
        if isinstance(value, DiffusionPipeline):
            _exchange(value, other)
        elif isinstance(value, SchedulerMixin) and (found := other(value)) is not value:
            setattr(pipeline, name, found)


def _fast(scheduler: Any) -> Any:
    ours, _ = scheduler_for(scheduler)
    if ours is None or ours is scheduler:
        return scheduler
    _originals[ours] = scheduler
    return ours


def _plain(scheduler: Any) -> Any:
    """diffusers' scheduler for one of ours, with what was set since; others stay."""
    if not isinstance(scheduler, SolverScheduler):
        return scheduler
    return original_of(scheduler, _originals.get(scheduler))
