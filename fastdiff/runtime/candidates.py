"""Several ways to compute one call on a GPU, and what is known of which is the quickest: candidates, decisions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastdiff.runtime.shape_classes import Bounds, holds

TORCH = "torch"  # the name of the last resort: the operator in plain PyTorch
# Families of candidates without a kernel of ours; "compile" and "copy" are in measured files only.
OF_PYTORCH = frozenset([
    TORCH, "torch channels-last", "cudnn", "flash", "efficient", "cublas with gelu", "cublas with residual", "compile",
    "copy",
])  # fmt: skip
MAX_LINES = 200  # of what `lines` gives


@dataclass(frozen=True)
class Candidate:
    """A way to compute a call. run: takes the operator's arguments and gives its results, without gradients.

    prepare: makes of arguments what runs those of their signature, with less work in every call, if there is such.
    settled: it is the choice for calls of this signature. Otherwise it stands in until the candidates can be timed, and
    is not to be kept: the next call asks again.
    """

    name: str
    run: Callable[[Any], Any] = field(compare=False)
    settled: bool = True
    prepare: Callable[[Any], Callable[[Any], Any]] | None = field(default=None, compare=False)


@dataclass
class Decision:
    """What was chosen for the calls of a signature. why: "from the table", "timed" ...; seconds: of a call, by name;
    dropped: names of candidates that cannot be taken, with the reason; settled: as of the candidate."""

    title: str
    chosen: str
    why: str
    seconds: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    settled: bool = True

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e6 * s:.1f} us" for name, s in sorted(self.seconds.items(), key=lambda i: i[1]))
        parts = [f"{self.title}: {self.chosen}, {self.why}", *([times] if times else [])]
        parts += [f"not {name}: {reason}" for name, reason in self.dropped.items()]
        return "; ".join(parts)


class Row(NamedTuple):
    """A row of the table: what is the quickest for calls of a class of shapes.

    kind: of dtype, "half" or "single"; measured: the times that say so; source: of the times. compared: families of the
    candidates that were measured; where a call has a kernel of ours of another family, the row does not decide. Empty:
    all that there are.
    """

    op: str
    architecture: str
    kind: str
    bounds: Bounds
    candidate: str
    measured: str
    source: str
    compared: tuple[str, ...] = ()

    def holds(self, op: str, kind: str, features: dict[str, int]) -> bool:
        """Whether the row is of such calls, on its architecture."""
        return (self.op, self.kind) == (op, kind) and holds(self.bounds, features)

    def decides(self, names: Collection[str]) -> bool:
        """Whether the row knows the quickest of these candidates."""
        known = self.candidate in names
        return known and (not self.compared or all(family(n) in self.compared for n in names if is_ours(n)))


def family(name: str) -> str:
    """Of a candidate: its name up to the numbers of a tile or plan, as "triton" of "triton 128x64/8/3"."""
    words = name.split()
    return " ".join(itertools.takewhile(lambda word: not any(map(str.isdigit, word)), words)) or name


def is_ours(name: str) -> bool:
    """Whether a candidate has a kernel of ours in it, by its name: all have but those that are PyTorch's alone."""
    return family(name) not in OF_PYTORCH


_decisions: dict[str, Decision] = {}


def keep(key: str, decision: Decision) -> None:
    """Keep a decision for `lines`."""
    _decisions[key] = decision


def decided(key: str) -> Decision | None:
    """The last decision for a key, or None."""
    return _decisions.get(key)


def forget() -> None:
    """Drop all decisions, for tests."""
    _decisions.clear()


def lines() -> list[str]:
    """Every decision of this process in a line, for `fastdiff.explain`; the first MAX_LINES of them."""
    found = [f"on a GPU, {decision}" for decision in list(_decisions.values())]
    return found[:MAX_LINES] + ([f"and {len(found) - MAX_LINES} more"] if len(found) > MAX_LINES else [])
