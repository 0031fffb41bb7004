"""What the programs assert."""

from __future__ import annotations

from torch import Tensor

from fastdiff.kernels.ahead_of_time.compile import TARGETS, Launch, Usage, usage


def assert_no_worse(ours: Tensor, theirs: Tensor, exact: Tensor, floor: float, *what: object) -> None:
    """The error of `ours` against float64 is at most twice that of `theirs` in the same dtype, plus `floor`."""
    assert ours.dtype == theirs.dtype, what
    assert ours.shape == exact.shape, what
    if exact.numel():
        error, allowed = (float((t.double() - exact).abs().max()) for t in (ours, theirs))
        assert error <= 2 * allowed + floor, (*what, error, allowed, floor)


def assert_fits(launch: Launch, *what: object, stack: int = 0, shared: int | None = None) -> Usage:
    """The kernel that a launch compiles has at most this stack, and no more shared memory than there is."""
    found = usage(launch.compile())
    assert found.stack <= stack, (launch.name, *what, found)
    assert found.shared <= (shared or TARGETS[launch.target].shared), (launch.name, *what, found)
    return found
