"""The one line of Python that uses a setting."""

from __future__ import annotations

import math

from torch import nn

from fastdiff.models.caching import is_own
from fastdiff.ops.linear_low import PRECISIONS as LOW
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.subject import Subject, device_argument


def python_line(subject: Subject, setting: Setting, *, count: int = 9) -> str:
    """A statement that samples `count` times with the setting; runs after `import torch, fastdiff`.

    For a subject of the user's own it begins with the code that makes it; a `Subject` that was made by hand has none,
    and is expected by the name `subject`.
    """
    lower = f"torch.{setting.dtype}" if setting.dtype != "float32" else ""
    shape = ", ".join(map(str, (count, *subject.shape)))
    if subject.bundled:
        options = device_argument(subject.device) + (f", dtype={lower}" if lower else "")
        network = f"(m := fastdiff.load({subject.name!r}{options}))"
    else:
        network = f"subject.model.to({lower})" if lower else "subject.model"
    own = subject.bundled or (isinstance(subject.model, nn.Module) and is_own(subject.model))
    if setting.cache and own:
        network = f"fastdiff.caching.Cached({network}, {setting.cache!r})"
    if setting.backend == "optimize":
        reuse = f", reuse={setting.cache!r}" if setting.cache and not own else ""
        low = f", precision={setting.precision!r}" if setting.precision in LOW else ""
        network = f"fastdiff.optimize({network}{reuse}{low})"
    arguments = [network, f"({shape})"]
    if not subject.bundled:
        arguments += ["schedule=subject.schedule", "prediction=subject.prediction"]
    arguments += [f"solver={setting.solver!r}", f"steps={setting.steps}"]
    if setting.grid:
        arguments.append(f"grid={list(setting.grid) if isinstance(setting.grid, tuple) else setting.grid!r}")
    arguments += _guidance(setting)
    arguments += _conditions(subject, setting, count, lower)
    arguments.append("seed=0")
    call = f"x = fastdiff.sample({', '.join(arguments)})"
    if setting.backend in ("reference", "cpu"):
        call = f"with fastdiff.use({setting.backend!r}): {call}"
    if not subject.code:
        return call
    return f"{subject.code}\n{call}" if call.startswith("with") else f"{subject.code}; {call}"


def _guidance(setting: Setting) -> list[str]:
    found = []
    if setting.guidance != 1:
        scale = _number(setting.guidance)
        options = [f"interval=({', '.join(map(_number, setting.interval))})"] if setting.interval else []
        options += [f"every={setting.guidance_every}"] if setting.guidance_every > 1 else []
        found.append(f"guidance=fastdiff.CFG({', '.join([scale, *options])})" if options else f"guidance={scale}")
    if setting.threshold is not None:
        percentile = f", {_number(setting.percentile)}" if setting.percentile is not None else ""
        found.append(f"threshold=fastdiff.Threshold({_number(setting.threshold)}{percentile})")
    return found


def _number(value: float) -> str:
    """All digits of a number, as Python reads it."""
    if not math.isfinite(value):
        return f"float({str(value)!r})"
    return str(int(value)) if value == int(value) else repr(float(value))


def _conditions(subject: Subject, setting: Setting, count: int, dtype: str) -> list[str]:
    if subject.conditions is None:
        return []
    if subject.bundled:
        classes = subject.about.get("classes") or []
        names = subject.about.get("prompts") or classes
        chosen = (
            "list(m.info.classes)" if count == len(classes) else repr([names[i % len(names)] for i in range(count)])
        )
        made = [f"m.info.condition({chosen}, {count})", f"m.info.condition(None, {count})"]
    else:
        moved = bool(dtype) or subject.device.type != "cpu"
        of = (
            f"subject.conditions_of(0, {count}{f', {dtype}' if dtype else ''})"
            if moved
            else f"subject.conditions(0, {count})"
        )
        made = [f"{of}[0]", f"{of}[1]"]
    return [f"{name}={code}" for name, code in zip(("cond", "uncond"), made[: 1 if setting.guidance == 1 else 2])]
