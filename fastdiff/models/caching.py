"""Reusing what a network computed at an earlier step: faster, and no longer the same answer. Off unless asked for.

U-Nets ("deep"): the features below the first level change slowly from step to step; between full calls only the outer
blocks run (Ma et al. 2024, DeepCache, Section 3.2). Transformers ("blocks"): all blocks after the first are replaced by
what they added last time (the residuals of Chen et al. 2024, Delta-DiT, Section 4.1, over all blocks but the first).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdiff.arguments import described
from fastdiff.errors import expect, one_of
from fastdiff.runtime import eager, runs

KINDS = ("deep", "blocks")


@dataclass(frozen=True)
class Caching:
    """When to reuse. kind: "deep" for U-Nets, "blocks" for DiTs.

    every: a full call is followed by every - 1 calls that reuse. threshold: instead, reuse as long as the outer
    features (after the first block) have changed by less than this share since the last full call, in RMS; it looks at
    values, which on a GPU waits for them. depth: how many of the outer blocks on the way down are always run.
    Raises ValueError unless exactly one of `every` and `threshold` is given.
    """

    kind: str
    every: int | None = None
    threshold: float | None = None
    depth: int = 1

    def __post_init__(self) -> None:
        one_of("caching", self.kind, KINDS)
        expect((self.every is None) != (self.threshold is None), "caching takes either every or a threshold")
        expect(self.every is None or self.every >= 2, f"every must be a whole number >= 2, got {self.every!r}")
        expect(self.threshold is None or self.threshold > 0, f"threshold must be positive, got {self.threshold!r}")
        expect(self.depth >= 1, f"depth must be >= 1, got {self.depth!r}")

    @classmethod
    def parse(cls, text: str) -> Caching:
        """From "deep:3" (every 3rd call is full), "deep:t=0.1" (a threshold), "blocks:2", with "@2" for the depth."""
        kind, _, rule = text.partition(":")
        rule, _, depth = rule.partition("@")
        try:
            given: dict[str, float] = {"threshold": float(rule[2:])} if rule.startswith("t=") else {"every": int(rule)}
            at = int(depth) if depth else 1
        except ValueError as error:
            raise ValueError(f'caching must be like "deep:3" or "blocks:t=0.1", got {text!r}') from error
        return cls(kind, depth=at, **given)  # type: ignore[arg-type]


@dataclass
class Cache:
    """What is kept between the calls of one run, and how many of them were full: a `Reuse` of the networks."""

    rule: Caching
    outer: Tensor | None = None  # of the last full call, for a threshold
    deep: Tensor | None = None  # of the last full call
    age: int = 0  # calls since the last full one, with it
    reusing: bool = False  # in this call
    shape: torch.Size | None = None
    time: float = float("inf")
    run: object = None
    full: int = 0
    reused: int = 0

    def __post_init__(self) -> None:
        eager.leave_untraced(Cache, "next_call", "_decide", "_is_close")

    @property
    def depth(self) -> int:
        """How many of the outer stages or first blocks always run."""
        return self.rule.depth

    def reset(self) -> None:
        """Forget; the next call is full."""
        self.outer = self.deep = self.shape = None
        self.age, self.time = 0, float("inf")

    def next_call(self, x: Tensor, t: Tensor) -> None:
        """Before each call of the network. Reads t, the first of its times, for a threshold alone."""
        run, time = runs.current(), float("inf")
        if self.rule.every is None:
            time = float(t.flatten()[0]) if t.numel() else 0.0
        if run is not self.run or x.shape != self.shape or time > self.time:
            self.reset()
        self.run, self.shape, self.time = run, x.shape, time
        if self.rule.every is not None:
            self._decide(self.deep is not None and self.age < self.rule.every)

    def compute(self, outer: Tensor, deep: Callable[[], Tensor]) -> Tensor:
        """The deep features for these outer ones: those that are kept, or deep()."""
        if self.rule.every is None:
            self._decide(self._is_close(outer))
            if not self.reusing:
                self.outer = outer
        if not self.reusing:
            self.deep = deep()
        assert self.deep is not None
        return self.deep

    def _decide(self, reusing: bool) -> None:
        self.reusing = reusing
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
        change = (outer - self.outer).float().square().mean() / self.outer.float().square().mean()
        return float(change) ** 0.5 < self.rule.threshold


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
        if not isinstance(caching, (str, Caching)):
            raise TypeError(f'caching must be a Caching, or like "deep:3" or "blocks:t=0.1", got {described(caching)}')
        self.cache = Cache(Caching.parse(caching) if isinstance(caching, str) else caching)
        _check(model, self.cache.rule)
        self.info = getattr(model, "info", None)
        self.config = getattr(model, "config", None)

    def reset(self) -> None:
        """Begin a new run: the next call is full."""
        self.cache.reset()

    def forward(self, x: Tensor, t: Tensor, *arguments: object, **conditions: object) -> Tensor:
        self.cache.next_call(x, t)
        return self.model(x, t, *arguments, reuse=self.cache, **conditions)


def _check(model: nn.Module, rule: Caching) -> None:
    """Raise TypeError for a model that this kind of caching does not know, ValueError for too great a depth."""
    from fastdiff.models.ddp import KarrasUnet
    from fastdiff.models.ddp.unet import Frame
    from fastdiff.models.dit import DiT
    from fastdiff.models.parts.backbone import Backbone
    from fastdiff.models.temporal_unet import TemporalUnet
    from fastdiff.models.uvit import UViT
    from fastdiff.models.video_unet import Unet3D

    unets = (Backbone, UViT, Unet3D, Frame, KarrasUnet, TemporalUnet)
    network = next((part for part in model.modules() if isinstance(part, unets if rule.kind == "deep" else DiT)), None)
    if network is None:
        what = "U-Nets" if rule.kind == "deep" else "DiTs"
        raise TypeError(f'caching "{rule.kind}" needs one of fastdiff\'s {what}, got {type(model).__name__}')
    taken = inspect.signature(model.forward).parameters.values()
    if not any(p.name == "reuse" or p.kind is p.VAR_KEYWORD for p in taken):
        raise TypeError(f"caching needs a model that passes `reuse` on to its network, got {type(model).__name__}")
    if isinstance(network, unets):
        stages = f"{len(network.down)} stages on the way down, got {rule.depth}"
        expect(rule.depth < len(network.down), f"depth must be less than the {stages}")
    elif isinstance(network, DiT):
        expect(rule.depth < len(network.blocks), f"depth must be less than the {len(network.blocks)} blocks")
