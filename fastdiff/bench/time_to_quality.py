"""How soon a good picture is there: DDIM with 50 steps by PyTorch, and what `fastdiff.find` gives instead, factor by
factor, with decoding, from the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff import pictures
from fastdiff.bench.timing import timed
from fastdiff.profiling.confirming import Found, measured, side_by_side, times_as_fast
from fastdiff.profiling.drawing import Drawer, using
from fastdiff.profiling.finding import find
from fastdiff.profiling.results import Row
from fastdiff.profiling.settings import Setting

MODELS = ("emoji-unet-32", "emoji-ldm-64", "emoji-dit-64")
SEARCHED = 0.7  # of a model's time; the rest measures the factors
DECODED = 5  # times that decoding is timed
# What each factor sets. Later ones build on earlier ones.
FACTORS = {
    "steps": ("solver", "steps", "grid"),
    "guidance": ("interval", "guidance_every"),
    "reuse": ("cache",),
    "kernels": ("backend",),
    "batch": ("batch",),
    "precision": ("precision",),
}
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Rung:
    """One setting on the way. factor: what it changes, "start" for the first. row: as of `fastdiff.find`, its seconds
    with decoding. times: as fast as the rung before, with the ends of a 90% interval. pictures: (N, H, W, 3) uint8."""

    factor: str
    row: Row
    times: tuple[float, float, float]
    pictures: NDArray[np.uint8]


@dataclass(frozen=True)
class Result:
    """Of one model. rungs: from the start to what was found. whole: times as fast as the start, with its interval.
    converged: pictures from the same noise. reason: why there are no rungs, or how sure the found setting is."""

    model: str
    rungs: tuple[Rung, ...]
    whole: tuple[float, float, float] | None
    converged: NDArray[np.uint8] | None
    samples: int
    reason: str
    line: str
    decoding: dict[str, float]


def ladder(start: Setting, best: Setting) -> list[tuple[str, Setting]]:
    """The start, and settings that come nearer to the best by a factor each; what changes nothing is left out."""
    found, setting = [("start", start)], start
    for factor, names in FACTORS.items():
        setting = replace(setting, **{name: getattr(best, name) for name in names})
        if setting != found[-1][1]:
            found.append((factor, setting))
    return found


def run(models: Sequence[str], minutes: float, out: Path, on_progress: Progress | None = None) -> list[Result]:
    """Of each model, which has its share of the minutes; searches are kept in folders of `out`, and gone on with.

    models: as `fastdiff.find` takes them.
    """
    began, whole, results = time.monotonic(), 60 * minutes, []
    for place, model in enumerate(models):
        left = (whole - (time.monotonic() - began)) / (len(models) - place)

        def tell(what: str, *_: float, model: str = model) -> None:
            if on_progress is not None:
                on_progress(f"{Path(model).name}: {what}", min(whole, time.monotonic() - began), whole)

        folder = out / Path(model).name.replace(":", "-")
        found = find(
            model, minutes=max(SEARCHED * left / 60, 1e-3), out=folder, resume=(folder / "plan.json").exists(),
            on_progress=tell,
        )  # fmt: skip
        results.append(measure(found, folder / "ladder", began + whole * (place + 1) / len(models)))
    return results


def measure(found: Found, folder: Path, until: float) -> Result:
    """The factors of what was found, side by side on samples of a third seed."""
    search, name = found.search, found.search.drawer.subject.name
    if found.best is None:
        return Result(name, (), None, None, 0, found.reason, "", {})
    steps = ladder(search.start, Setting.from_dict(found.best["setting"]))
    settings = [setting for _, setting in steps]
    sweep = side_by_side(search, settings, search.drawer.seed + 2, folder, until)
    rows = {row["slug"]: row for row in measured(sweep)}
    failed = [rows[s.slug] for s in settings if rows[s.slug]["error"]]
    if failed:
        return Result(name, (), None, None, 0, f"{failed[0]['label']}: {failed[0]['error']}", "", {})
    decoding = decode_seconds(sweep.drawer, settings)
    rungs: list[Rung] = []
    for factor, setting in steps:
        row = rows[setting.slug]
        seconds = row["seconds"]
        row["seconds"] = {**seconds, "median": seconds["median"] + decoding[setting.backend]}
        row["seconds"]["noise"] = seconds["noise"] * seconds["median"] / row["seconds"]["median"]
        shown = sweep.units[setting.slug][0].shown
        assert shown is not None
        rungs.append(Rung(factor, row, times_as_fast(rungs[-1].row if rungs else row, row), shown))
    (reference,) = sweep.references.values()
    return Result(
        name, tuple(rungs), times_as_fast(rungs[0].row, rungs[-1].row), pictures.to_uint8(reference.pictures),
        sweep.plan.round_size, found.reason, found.line, decoding,
    )  # fmt: skip


def decode_seconds(drawer: Drawer, settings: Sequence[Setting]) -> dict[str, float]:
    """Of one sample, by backend; 0 for a model of pixels."""
    subject, found = drawer.subject, {}
    for setting in {setting.backend: setting for setting in settings}.values():
        found[setting.backend] = 0.0
        if subject.decode is not None:
            samples: Tensor = torch.zeros(setting.batch, *subject.shape, device=subject.device)
            times = []
            with using(setting):
                for _ in range(DECODED + 1):  # the first is slower: kernels are chosen, weights are packed
                    with timed(subject.device) as elapsed:
                        subject.pictures(samples)
                    times.append(elapsed.seconds / setting.batch)
            found[setting.backend] = float(np.median(times[1:]))
    return found


def record(result: Result) -> dict[str, Any]:
    """A row as in fastdiff.bench.records, of a result that has rungs."""
    timing = [
        {"median": s["median"], "p20": s["median"] * (1 - s["noise"]), "p80": s["median"] * (1 + s["noise"])}
        for s in (result.rungs[-1].row["seconds"], result.rungs[0].row["seconds"])
    ]
    return {
        "name": result.model, "seconds": dict(zip(("ours", "start"), timing)), "baseline": "start",
        "samples": result.samples, "times_as_fast": result.whole, "reason": result.reason, "line": result.line,
        "decoding": result.decoding,
        "factors": [{"factor": rung.factor, "times": rung.times, "row": rung.row} for rung in result.rungs],
    }  # fmt: skip
