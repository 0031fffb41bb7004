"""A plugin of pytest for diffusers' own tests: each scheduler is replaced by the one that `fastdiff.optimize` takes.

Loaded by tests/external/run.sh. The classes of schedulers construct the replacement where there is one, and themselves
otherwise, so that the tests run unchanged.
"""

from __future__ import annotations

from typing import Any

from fastdiff.integrations.diffusers import scheduler_for


class _Swapped(type):
    """The type of a scheduler's class whose objects are replaced when they are made."""

    busy = False

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        if _Swapped.busy:  # scheduler_for makes others to compare with
            return made
        _Swapped.busy = True
        try:
            replacement, _ = scheduler_for(made)
        finally:
            _Swapped.busy = False
        return made if replacement is None else replacement


def pytest_configure() -> None:
    import diffusers
    from diffusers import schedulers

    for name in dir(schedulers):
        original = getattr(schedulers, name)
        if isinstance(original, type) and issubclass(original, diffusers.SchedulerMixin):
            members = {"__module__": original.__module__, "__init__": original.__init__, "__doc__": original.__doc__}
            swapped = _Swapped(name, (original,), members)
            setattr(schedulers, name, swapped)
            setattr(diffusers, name, swapped)
