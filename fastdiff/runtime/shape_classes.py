"""Classes of shapes, for which one measurement stands: ranges of the features that an operator's candidates name."""

from __future__ import annotations

from bisect import bisect_right

MANY = 1 << 31
Bounds = tuple[tuple[str, int, int], ...]  # (feature, least, below)

# Where ranges begin; the last has no end. Heads of one range need the same chunks of columns (attention), and norms of
# one range take the same way through the caches.
_DIM = (1, 17, 33, 41, 49, 57, 65, 73, 81, 97, 121, 129, 161, 193, 257, 513)
_ROWS = (1, 65, 129, 513, 2048)
_NUMBERS = (1, 100_000, 300_000, 1_000_000, 2_000_000, 3_500_000, 6_000_000, 12_000_000, 25_000_000)
EDGES: dict[str, dict[str, tuple[int, ...]]] = {
    "attention": {"dim": _DIM, "queries": _ROWS, "keys": _ROWS},
    "group_norm_silu": {"numbers": _NUMBERS, "channels_last": (0, 1, 2), "adaptive": (0, 1, 2)},
    "ada_layer_norm": {"numbers": (1, 300_000, 1_000_000, 3_000_000, 8_000_000, 15_000_000)},
    "residual_ada_layer_norm": {"numbers": (1, 300_000, 1_000_000, 3_000_000, 8_000_000, 15_000_000)},
}


def bounds(op: str, features: dict[str, int]) -> Bounds:
    """The class that a call with these features is in. A feature without ranges of its own has powers of two."""
    return tuple((name, *_range(EDGES.get(op, {}).get(name), value)) for name, value in features.items())


def holds(bounds: Bounds, features: dict[str, int]) -> bool:
    """Whether every feature is in its range; one that is missing is in none."""
    return all(least <= features.get(name, -1) < below for name, least, below in bounds)


def _range(edges: tuple[int, ...] | None, value: int) -> tuple[int, int]:
    if edges is None:
        return (value, value + 1) if value < 2 else (1 << (value.bit_length() - 1), 1 << value.bit_length())
    at = bisect_right(edges, value)
    return edges[at - 1] if at else 0, edges[at] if at < len(edges) else MANY
