"""What a network asks when part of a call may be taken from an earlier one; `fastdiff.caching` answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Reuse(Protocol):
    """Given to a network's call as `reuse`.

    depth: how many of the outermost stages (of a U-Net, on the way down) or first blocks (of a transformer) always run.
    """

    @property
    def depth(self) -> int: ...

    def compute(self, outer: Tensor, deep: Callable[[], Tensor]) -> Tensor:
        """deep(), or what it gave in an earlier call. outer: the features after the first `depth` stages.

        deep() runs all that is deeper: in a U-Net it gives the features that the outer stages on the way up start from,
        in a transformer what the deeper blocks add to `outer`.
        """
