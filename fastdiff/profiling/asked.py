"""What a sweep was asked for, as plan.json keeps it, so that `resume` needs none of it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdiff.errors import expect
from fastdiff.guidance import Threshold
from fastdiff.profiling.settings import Axes
from fastdiff.profiling.store import PLAN, read_plan

# What is taken from the plan where it is not given again; all else that is given must be the same.
CHANGEABLE = ("budget", "target_rmse", "target_ssim", "target_frechet")


def asked(axes: Axes, **options: Any) -> dict[str, Any]:
    """As JSON holds it: the values of the axes, and the options."""
    return {"axes": {name: _plain(values) for name, values in vars(axes).items()}, **options}


def resumed(out: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the sweep in the folder `out`, completed by what is given (None is not given).

    An axis may be given with more values than it had: what is done stays. Raises ValueError if there is no sweep, or if
    something is given that would make it another one.
    """
    path = Path(out) / PLAN
    expect(path.is_file(), f"{out} holds no sweep to go on with; --resume needs the --out of one")
    kept = read_plan(path).get("asked", {})
    expect("axes" in kept, f"{path} is of an older version, which did not keep the settings; give another --out")
    before = {**kept["axes"], **{name: value for name, value in kept.items() if name != "axes"}}
    for name, value in given.items():
        if value is None or name not in before or name in CHANGEABLE:
            continue
        wanted, was = _plain(value), before[name]
        more = name in kept["axes"] and all(each in wanted for each in was)
        expect(
            more or wanted == was,
            f"{path} was made with {name} {_shown(was)}, not {_shown(wanted)}; --resume goes on with those, or give "
            "another --out",
        )
    found = {name: _read(name, value) for name, value in before.items()}
    return {**found, **{name: value for name, value in given.items() if value is not None}}


def _plain(value: Any) -> Any:
    if isinstance(value, Threshold):
        return {"limit": value.limit, "percentile": value.percentile}
    if isinstance(value, Path):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _read(name: str, value: Any) -> Any:
    if name == "thresholds":
        return [Threshold(**each) if isinstance(each, dict) else each for each in value]
    if name == "intervals":
        return [tuple(each) if isinstance(each, list) else each for each in value]
    return value


def _shown(value: Any) -> str:
    return ",".join("none" if each is None else str(each) for each in value) if isinstance(value, list) else repr(value)
