"""Reusing what a network computed at an earlier step: faster, and no longer the same answer. Off unless asked for.

U-Nets ("deep"): the features below the first level change slowly from step to step; between full calls only the outer
blocks run (Ma et al. 2024, DeepCache, Section 3.2). Transformers ("blocks"): all blocks after the first are replaced by
what they added last time (the residuals of Chen et al. 2024, Delta-DiT, Section 4.1, over all blocks but the first).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.arguments import described
from fastdiff.compiler.branches import branches_of
from fastdiff.compiler.calibration import calibrate
from fastdiff.errors import expect
from fastdiff.runtime import eager, runs
from fastdiff.runtime.reuse import Caching, change

__all__ = ["Cache", "Cached", "Caching", "calibrate", "reset"]


@dataclass
class Cache:
    """What is kept between the calls of one run, and how many of them were full: a `Reuse` of the networks.

    What `deep` to `time` hold is of the branch of the last call (guidance by prompts of different lengths has two in a
    run); `others` has that of the other branches.
    """

    rule: Caching
    outer: Tensor | None = None  # of the last full call, for a threshold
    deep: Tensor | None = None  # of the last full call
    calls: int = 0  # of the run
    age: int = 0  # calls since the last full one, with it
    reusing: bool = False  # in this call
    shape: torch.Size | None = None
    time: float = float("inf")
    run: object = None
    branch: str = ""
    others: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    full: int = 0
    reused: int = 0

    def __post_init__(self) -> None:
        eager.leave_untraced(Cache, "next_call", "_decide", "_is_close")

    @property
    def depth(self) -> int:
        """How many of the outer stages or first blocks always run."""
        return self.rule.depth

    def reset(self) -> None:
        """Forget; the next call of each branch is full."""
        self.others.clear()
        self._begin()

    def _begin(self) -> None:
        """Of this branch nothing is kept."""
        self.outer = self.deep = self.shape = None
        self.calls, self.age, self.time = 0, 0, float("inf")

    def _turn_to(self, branch: str) -> None:
        """Have what is kept of another branch."""
        self.others[self.branch] = (self.outer, self.deep, self.calls, self.age, self.shape, self.time)
        self._begin()
        if branch in self.others:
            self.outer, self.deep, self.calls, self.age, self.shape, self.time = self.others.pop(branch)
        self.branch = branch

    def next_call(self, x: Tensor, t: Tensor) -> None:
        """Before each call of the network. Reads t, the first of its times, for a threshold alone."""
        run, time = runs.current(), float("inf")
        if self.rule.threshold is not None:
            time = float(t.flatten()[0]) if t.numel() else 0.0
        if run is not self.run:
            self.reset()
        if runs.current_branch() != self.branch:
            self._turn_to(runs.current_branch())
        if x.shape != self.shape or time > self.time:
            self._begin()
        self.run, self.shape, self.time = run, x.shape, time
        if self.rule.threshold is None:
            self._decide(self.deep is not None and self.rule.counted(self.calls, self.age))

    def compute(self, outer: Tensor, deep: Callable[[], Tensor]) -> Tensor:
        """The deep features for these outer ones: those that are kept, or deep()."""
        if self.rule.threshold is not None:
            self._decide(self._is_close(outer))
            if not self.reusing:
                self.outer = outer
        if not self.reusing:
            self.deep = deep()
        assert self.deep is not None
        return self.deep

    def _decide(self, reusing: bool) -> None:
        self.reusing = reusing
        self.calls += 1
        self.age = self.age + 1 if reusing else 1
        self.reused += reusing
        self.full += not reusing
        if not reusing:
            self.deep = None  # should the call fail

    def _is_close(self, outer: Tensor) -> bool:
        """Whether the outer features are within the threshold of those of the last full call."""
        if self.outer is None:
            return False
        assert self.rule.threshold is not None
        return float(change(outer, self.outer)) < self.rule.threshold


class Cached(nn.Module):
    """`model` with a cache across the calls of one run: network(x, t, **cond) as before.

    model: one of fastdiff's U-Nets (a `Backbone`) or a `DiT`, or a module around one whose forward passes `reuse` on to
    it; its weights are shared and not changed. Each run of fastdiff.sample begins anew, and so does a call for another
    shape. In a loop of your own call `reset()` before each run; with a threshold, which waits for the times' values
    anyway, a call at a later time than the one before begins anew too. Not for two threads. Raises TypeError for a
    model that the kind of caching does not know.
    """

    def __init__(self, model: nn.Module, caching: Caching | str) -> None:
        super().__init__()
        self.model = model
        self.cache = Cache(Caching.of("caching", caching))
        _check(model, self.cache.rule)
        self.info = getattr(model, "info", None)
        self.config = getattr(model, "config", None)

    def reset(self) -> None:
        """Begin a new run: the next call is full."""
        self.cache.reset()

    def forward(self, x: Tensor, t: Tensor, *arguments: object, **conditions: object) -> Tensor:
        self.cache.next_call(x, t)
        return self.model(x, t, *arguments, reuse=self.cache, **conditions)


def is_own(model: nn.Module) -> bool:
    """Whether this is, or holds, one of fastdiff's networks that `Cached` knows."""
    unets, transformers = _networks()
    return _first(model, unets + transformers) is not None


def _networks() -> tuple[tuple[type, ...], tuple[type, ...]]:
    """U-Nets and transformers."""
    from fastdiff.models.ddp import KarrasUnet
    from fastdiff.models.ddp.unet import Frame
    from fastdiff.models.dit import DiT
    from fastdiff.models.parts.backbone import Backbone
    from fastdiff.models.temporal_unet import TemporalUnet
    from fastdiff.models.uvit import UViT
    from fastdiff.models.video_unet import Unet3D

    return (Backbone, UViT, Unet3D, Frame, KarrasUnet, TemporalUnet), (DiT,)


def _first(model: nn.Module, kinds: tuple[type, ...]) -> Any:
    return next((part for part in model.modules() if isinstance(part, kinds)), None)


def _check(model: nn.Module, rule: Caching) -> None:
    """Raise TypeError for a model that this kind of caching does not know, ValueError for too great a depth."""
    unets, transformers = _networks()
    network = _first(model, unets if rule.kind == "deep" else transformers)
    if network is None:
        what = "U-Nets" if rule.kind == "deep" else "DiTs"
        raise TypeError(f'caching "{rule.kind}" needs one of fastdiff\'s {what}, got {type(model).__name__}')
    expect(rule.depth >= 1, f"depth must be >= 1 with Cached, got {rule.depth} (0 is for fastdiff.optimize(reuse=))")
    taken = inspect.signature(model.forward).parameters.values()
    if not any(p.name == "reuse" or p.kind is p.VAR_KEYWORD for p in taken):
        raise TypeError(f"caching needs a model that passes `reuse` on to its network, got {type(model).__name__}")
    if rule.kind == "deep":
        stages = f"{len(network.down)} stages on the way down, got {rule.depth}"
        expect(rule.depth < len(network.down), f"depth must be less than the {stages}")
    else:
        expect(rule.depth < len(network.blocks), f"depth must be less than the {len(network.blocks)} blocks")


def reset(model: Any) -> None:
    """A new run begins with the next call of a model or pipeline after `fastdiff.optimize(..., reuse=...)`, or of a
    `Cached`.

    For loops of your own: `fastdiff.sample` and pipelines of diffusers say so themselves. Once a model has been told,
    it looks at no more times on a GPU to find out, so tell it before each run. Raises TypeError for other models.
    """
    parts = model.modules() if isinstance(model, nn.Module) else ()
    keepers: list[Any] = [*branches_of(model), *(part for part in parts if isinstance(part, Cached))]
    if not keepers:
        raise TypeError(f"reset() takes a model that reuses what it computed, got {described(model)}")
    for each in keepers:
        each.reset()
