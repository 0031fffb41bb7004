"""Reusing what a network computed at an earlier step: faster, and no longer the same answer. Off unless asked for.

U-Nets ("deep"): the features below the first level change slowly from step to step; between full calls only the outer
blocks run (Ma et al. 2024, DeepCache, Section 3.2). Transformers ("blocks"): all blocks after the first are replaced by
what they added last time (the residuals of Chen et al. 2024, Delta-DiT, Section 4.1, over all blocks but the first).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdiff.errors import expect, unknown

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
        if self.kind not in KINDS:
            raise unknown("caching", self.kind, KINDS)
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
            return cls(kind, depth=int(depth) if depth else 1, **given)  # type: ignore[arg-type]
        except ValueError as error:
            if kind in KINDS and not rule.startswith("t=") and not rule.isdigit():
                raise ValueError(f'caching must be like "deep:3" or "blocks:t=0.1", got {text!r}') from error
            raise


@dataclass
class Cache:
    """What is kept between the calls of one run, and how many of them were full."""

    rule: Caching
    outer: Tensor | None = None
    deep: Tensor | None = None
    age: int = 0
    time: float = float("inf")
    full: int = 0
    reused: int = 0

    def reset(self) -> None:
        """Forget; the next call is full."""
        self.outer = self.deep = None
        self.age, self.time = 0, float("inf")

    def compute(self, outer: Tensor, deep: Callable[[], Tensor]) -> Tensor:
        """The deep features for these outer ones: those that are kept, or deep()."""
        if self._fits(outer):
            assert self.deep is not None
            self.age += 1
            self.reused += 1
            return self.deep
        self.outer, self.deep, self.age = outer, deep(), 1
        self.full += 1
        return self.deep

    def _fits(self, outer: Tensor) -> bool:
        if self.deep is None or self.outer is None or self.outer.shape != outer.shape:
            return False
        if self.rule.every is not None:
            return self.age < self.rule.every
        change = (outer - self.outer).float().square().mean() / self.outer.float().square().mean()
        assert self.rule.threshold is not None
        return float(change) ** 0.5 < self.rule.threshold


class Cached(nn.Module):
    """`model` with a cache across the calls of one run: network(x, t, **cond) as before.

    model: one of fastdiff's U-Nets (a `Backbone`) or a `DiT`, whose weights are shared and not
    changed. A call at a later time than the one before, or for another shape, begins a new run. Not for two threads.
    Raises TypeError for a model that the kind of caching does not know.
    """

    def __init__(self, model: nn.Module, caching: Caching | str) -> None:
        super().__init__()
        self.model = model
        self.cache = Cache(Caching.parse(caching) if isinstance(caching, str) else caching)
        self._install = _installer(model, self.cache)
        self.info = getattr(model, "info", None)
        self.config = getattr(model, "config", None)

    def forward(self, x: Tensor, t: Tensor, *arguments: object, **conditions: object) -> Tensor:
        time = float(t.flatten()[0]) if t.numel() else 0.0
        if time > self.cache.time:
            self.cache.reset()
        self.cache.time = time
        with self._install():
            return self.model(x, t, *arguments, **conditions)


def _installer(model: nn.Module, cache: Cache) -> Callable[[], AbstractContextManager[None]]:
    from fastdiff.models.dit import DiT
    from fastdiff.models.parts.backbone import Backbone

    if cache.rule.kind == "deep":
        backbone = model if isinstance(model, Backbone) else next(
            (part for part in model.modules() if isinstance(part, Backbone)), None
        )  # fmt: skip
        if backbone is None:
            raise TypeError(f'caching "deep" needs one of fastdiff\'s U-Nets, got {type(model).__name__}')
        expect(
            cache.rule.depth < len(backbone.down),
            f"depth must be less than the {len(backbone.down)} stages on the way down, got {cache.rule.depth}",
        )

        def run(x: Tensor, embedding: Tensor | None, context: Tensor | None = None) -> Tensor:
            return _run_unet(backbone, cache, x, embedding, context)

        return lambda: _replaced(backbone, "run", run)
    dit = model if isinstance(model, DiT) else next((m for m in model.modules() if isinstance(m, DiT)), None)
    if dit is None:
        raise TypeError(f'caching "blocks" needs one of fastdiff\'s DiTs, got {type(model).__name__}')
    expect(cache.rule.depth < len(dit.blocks), f"depth must be less than the {len(dit.blocks)} blocks")

    def run_blocks(h: Tensor, conditions: list[Tensor]) -> Tensor:
        depth = cache.rule.depth
        fresh: list[Tensor] = []
        for block, condition in zip(dit.blocks[:depth], conditions):
            h = block(h, condition)

        def rest() -> Tensor:
            deeper = h
            for block, condition in zip(dit.blocks[depth:], conditions[depth:]):
                deeper = block(deeper, condition)
            fresh.append(deeper)
            return deeper - h

        residual = cache.compute(h, rest)
        return fresh[0] if fresh else h + residual  # a full call without the rounding of the residual

    return lambda: _replaced(dit, "run_blocks", run_blocks)


def _run_unet(backbone: nn.Module, cache: Cache, x: Tensor, embedding: Tensor | None, context: Tensor | None) -> Tensor:
    """`Backbone.run` with what lies below the first `depth` stages kept."""
    from fastdiff.models.parts.backbone import Backbone

    assert isinstance(backbone, Backbone)
    depth = cache.rule.depth
    h = backbone.stem(x)
    skips = [h]
    for stage in backbone.down[:depth]:
        h = stage(h, embedding, context)
        skips.append(h)
    outer_ups = depth + 1
    sizes = [skip.shape[2:] for skip in skips]

    def deep() -> Tensor:
        inner, below = h, list(skips)
        for stage in backbone.down[depth:]:
            inner = stage(inner, embedding, context)
            below.append(inner)
        inner = backbone.middle(inner, embedding, context)
        for number, stage in enumerate(backbone.up[: len(backbone.up) - outer_ups]):
            index = len(below) - 1 - number
            inner = stage(torch.cat([inner, below[index]], dim=1), embedding, context, below[index - 1].shape[2:])
        return inner

    out = cache.compute(h, deep)
    for number, stage in enumerate(backbone.up[len(backbone.up) - outer_ups :]):
        index = depth - number
        out = stage(torch.cat([out, skips[index]], dim=1), embedding, context, sizes[max(0, index - 1)])
    return backbone.conv_out(backbone.norm_out(out, activation="silu"))


@contextmanager
def _replaced(owner: nn.Module, name: str, function: Callable[..., Tensor]) -> Iterator[None]:
    """The method `name` of this one object is `function` inside the block."""
    owner.__dict__[name] = function
    try:
        yield
    finally:
        del owner.__dict__[name]
