"""The one line of Python that uses a setting."""

from __future__ import annotations

from fastdiff.profiling.settings import Setting
from fastdiff.profiling.subject import Subject


def python_line(subject: Subject, setting: Setting, *, count: int = 9) -> str:
    """A statement that samples `count` times with the setting; runs after `import torch, fastdiff`."""
    bundled = not subject.code
    shape = ", ".join(map(str, (count, *subject.shape)))
    if bundled:
        dtype = f", dtype=torch.{setting.precision}" if setting.precision != "float32" else ""
        model = f"fastdiff.load({subject.name!r}{dtype})"
    else:
        model = "subject.model" + (f".to(torch.{setting.precision})" if setting.precision != "float32" else "")
    network = f"(m := {model})" if bundled else model
    if setting.cache:
        network = f"fastdiff.caching.Cached({network}, {setting.cache!r})"
    if setting.backend == "optimize":
        network = f"fastdiff.optimize({network})"
    arguments = [network, f"({shape})"]
    if not bundled:
        arguments += ["schedule=subject.schedule", "prediction=subject.prediction"]
    arguments += [f"solver={setting.solver!r}", f"steps={setting.steps}"]
    if setting.grid:
        arguments.append(f"grid={setting.grid!r}")
    arguments += _guidance(setting)
    arguments += _conditions(subject, setting, count, bundled)
    arguments.append("seed=0")
    call = f"x = fastdiff.sample({', '.join(arguments)})"
    if setting.backend in ("reference", "cpu"):
        call = f"with fastdiff.use({setting.backend!r}): {call}"
    return call if bundled else f"{subject.code}; {call}" if not call.startswith("with") else f"{subject.code}\n{call}"


def _guidance(setting: Setting) -> list[str]:
    found = []
    if setting.guidance != 1:
        interval = f", interval={setting.interval}" if setting.interval else ""
        found.append(
            f"guidance=fastdiff.CFG({setting.guidance:g}{interval})" if interval else f"guidance={setting.guidance:g}"
        )
    if setting.threshold is not None:
        percentile = f", {setting.percentile:g}" if setting.percentile is not None else ""
        found.append(f"threshold=fastdiff.Threshold({setting.threshold:g}{percentile})")
    return found


def _conditions(subject: Subject, setting: Setting, count: int, bundled: bool) -> list[str]:
    if subject.conditions is None:
        return []
    if bundled:
        classes = subject.about.get("classes") or []
        names = subject.about.get("prompts") or classes
        chosen = (
            "list(m.info.classes)" if count == len(classes) else repr([names[i % len(names)] for i in range(count)])
        )
        found = [f"cond=m.info.condition({chosen}, {count})"]
        if setting.guidance != 1:
            found.append(f"uncond=m.info.condition(None, {count})")
        return found
    found = [f"cond=subject.conditions(0, {count})[0]"]
    if setting.guidance != 1:
        found.append(f"uncond=subject.conditions(0, {count})[1]")
    return found
