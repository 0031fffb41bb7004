"""When a network's call may take part of its result from an earlier one: the rule, by numbers of calls or a threshold.

`fastdiff.caching.Cached` and `fastdiff.optimize(model, reuse=...)` follow it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from fastdiff.arguments import described
from fastdiff.errors import expect, one_of

KINDS = ("deep", "blocks")


@dataclass(frozen=True)
class Caching:
    """When to reuse. kind: "deep" for U-Nets, "blocks" for transformers.

    every: a full call is followed by every - 1 calls that reuse. full: instead, the numbers of a run's full calls, from
    0; all others reuse (`fastdiff.caching.calibrate` finds them). threshold: instead, reuse as long as the outer
    features (after the first block) have changed by less than this share since the last full call, in RMS; it looks at
    values, which on a GPU waits for them. depth: how many of the outer blocks on the way down are always run. 0, for
    `optimize(reuse=)` of a transformer: none; a threshold is then of what the first block's first layer reads, the
    input modulated by the time, whose changes from call to call are summed up (Liu et al. 2024, TeaCache, Eq. 4, in L1,
    without its polynomial).
    Raises ValueError unless exactly one of `every`, `full` and `threshold` is given, and for values that they cannot
    have.
    """

    kind: str
    every: int | None = None
    threshold: float | None = None
    depth: int = 1
    full: Sequence[int] | None = None

    def __post_init__(self) -> None:
        one_of("caching", self.kind, KINDS)
        rules = (self.every, self.full, self.threshold)
        expect(sum(rule is not None for rule in rules) == 1, "caching takes either every or full or a threshold")
        expect(self.every is None or self.every >= 2, f"every must be a whole number >= 2, got {self.every!r}")
        expect(
            self.threshold is None or 0 < self.threshold < math.inf,
            f"threshold must be positive and finite, got {self.threshold!r}",
        )
        expect(self.depth >= 0, f"depth must be >= 0, got {self.depth!r}")
        if self.full is not None:
            numbers = tuple(self.full)
            expect(
                numbers[:1] == (0,) and all(a < b for a, b in pairwise(numbers)),
                f"full must be increasing numbers of calls that begin with 0, got {self.full!r}",
            )
            object.__setattr__(self, "full", numbers)

    @classmethod
    def parse(cls, text: str) -> Caching:
        """From "deep:3" (every 3rd call is full), "deep:t=0.1" (a threshold), "deep:full=0+2+5" (these calls are full),
        "blocks:2", with "@2" for the depth."""
        kind, _, rule = text.partition(":")
        rule, _, depth = rule.partition("@")
        name, _, value = rule.rpartition("=")
        given: dict[str, float | tuple[int, ...]]
        try:
            if name == "t":
                given = {"threshold": float(value)}
            elif name == "full":
                given = {"full": tuple(map(int, value.split("+")))}
            else:
                given = {"every": int(rule)}
            at = int(depth) if depth else 1
        except ValueError as error:
            raise ValueError(f'caching must be like "deep:3" or "blocks:t=0.1", got {text!r}') from error
        return cls(kind, depth=at, **given)  # type: ignore[arg-type]

    @classmethod
    def of(cls, name: str, given: Caching | str) -> Caching:
        """The rule, or the one that a text says. name: of the argument, for the error. Raises TypeError for others."""
        if not isinstance(given, (str, Caching)):
            raise TypeError(f'{name} must be a Caching, or like "deep:3" or "blocks:t=0.1", got {described(given)}')
        return cls.parse(given) if isinstance(given, str) else given

    def __str__(self) -> str:
        """What `parse` takes."""
        if self.full is not None:
            rule = "full=" + "+".join(map(str, self.full))
        else:
            rule = f"t={self.threshold!r}" if self.threshold is not None else str(self.every)
        return f"{self.kind}:{rule}" + (f"@{self.depth}" if self.depth != 1 else "")

    def counted(self, number: int, age: int) -> bool:
        """Whether a call may reuse, by numbers alone. number: of the call in its run, from 0; age: calls since the last
        full one, with it."""
        if self.full is not None:
            return number not in self.full
        return self.every is None or age < self.every


def change(new: Tensor, old: Tensor) -> Tensor:
    """The change as a share of what was there, in RMS: a number, on the tensors' device."""
    return ((new - old).float().square().mean() / old.float().square().mean()).sqrt()
