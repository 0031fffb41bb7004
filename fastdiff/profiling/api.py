"""`fastdiff.profile`: sweep, measure, report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.errors import expect
from fastdiff.files import locked
from fastdiff.guidance import Threshold
from fastdiff.profiling import front as fronts
from fastdiff.profiling.asked import asked, resumed
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.features import Extractor, get_extractor
from fastdiff.profiling.machine import describe
from fastdiff.profiling.plan import Plan, make_plan
from fastdiff.profiling.results import DISTANCES, Profile, Row, rows_of, times_of
from fastdiff.profiling.settings import Axes, common
from fastdiff.profiling.store import PLAN, Store
from fastdiff.profiling.subject import Subject
from fastdiff.profiling.subjects import get_subject
from fastdiff.profiling.sweep import Progress, Sweep
from fastdiff.profiling.usage import python_line

OUT = "fastdiff-profile"


def profile(
    model: str | Subject | Callable[[], Any] | None,
    *,
    solvers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    guidance: Sequence[float] | None = None,
    intervals: Sequence[tuple[float, float] | None] | None = None,
    guidance_every: Sequence[int] | None = None,
    thresholds: Sequence[Threshold | float | None] | None = None,
    precisions: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    grids: Sequence[str | tuple[float, ...] | None] | None = None,
    backends: Sequence[str] | None = None,
    caches: Sequence[str | None] | None = None,
    samples: int | None = None,
    minutes: float = 8.0,
    reference_steps: int | None = None,
    seed: int | None = None,
    features: str | Extractor | Callable[[Tensor], Tensor] | None = None,
    data: str | Path | Tensor | None = None,
    budget: str | float | None = None,
    target_rmse: float | None = None,
    device: str | torch.device | None = None,
    out: str | Path = OUT,
    resume: bool = False,
    on_progress: Progress | None = None,
    on_plan: Callable[[Plan, int], None] | None = None,
    before: Callable[[Sweep], None] | None = None,
) -> Profile:
    """Every combination of the settings: time and model calls a sample, distance to the converged trajectory from the
    same noise, distances of the distribution; the front; and a report in `out`.

    model: a bundled model's name, a folder in diffusers' layout, an entry point `module:function` or
    `file.py:function`, a function that returns a `Subject`, or a `Subject`. None to resume the sweep of a name.
    solvers, steps, guidance, ..., caches: the values to combine, see `fastdiff.profiling.settings.Setting`. If None,
    guidance is the model's own, solvers, steps and grids are those of a distilled model, and the others are those of
    `fastdiff.profiling.settings.Axes`. samples: of every
    setting (rounded up to whole rounds); if None, as many as fit into `minutes`, and at least 12: `plan.advice` says
    what to leave out if those take longer. reference_steps: of the converged trajectory, a multiple of 4; 200 if None.
    seed: 0 if None. features: what distributions are compared on, see `get_extractor`; data: a folder of pictures, or
    pictures (N, C, H, W) in [-1, 1], to compare with. budget: the most that a sample may take, "2s" or seconds;
    target_rmse: the RMSE to reach, pixels in [-1, 1]. device: where the model computes, "cpu", "cuda" or "cuda:N"; if
    None, where it is made, which is the CPU for all but entry points and Subjects. Times there are taken by events of
    the device. resume: go on with the sweep in `out`: what is None is as it was
    there, and what would make it another sweep is refused; axes may get more values, and `samples` may be more.
    on_progress(what, done, total); on_plan(plan, number of settings). before(sweep) may do some of the work, into the
    sweep's folder: see `fastdiff.distributed.profile`.

    A combination that fails is a row with its error. KeyboardInterrupt writes the report of what is there, then is
    raised again. Raises ValueError for arguments that no run could have, before anything is computed, for a folder that
    another process works in, or that holds no sweep to resume, and OSError if the folder cannot be written.
    """
    from fastdiff.profiling.report import require, write

    require()
    given = {
        "solvers": solvers, "steps": steps, "guidance": guidance, "intervals": intervals,
        "guidance_every": guidance_every, "thresholds": thresholds, "precisions": precisions, "batches": batches,
        "grids": grids, "backends": backends, "caches": caches,
        "reference_steps": reference_steps, "seed": seed, "features": features, "data": data, "budget": budget,
        "target_rmse": target_rmse, "device": None if device is None else str(arguments.device("device", device)),
    }  # fmt: skip
    chosen: dict[str, Any] = resumed(out, given) if resume else {k: v for k, v in given.items() if v is not None}
    if model is None:
        model = chosen.get("model")
        expect(model is not None, "model must be given; a sweep keeps the names of models only")
        assert model is not None
    reference_steps, seed = chosen.get("reference_steps", 200), chosen.get("seed", 0)
    budget, target_rmse = chosen.get("budget"), chosen.get("target_rmse")
    expect(
        isinstance(reference_steps, int) and reference_steps >= 8 and reference_steps % 4 == 0,
        f"reference_steps must be a multiple of 4, at least 8, got {reference_steps!r}",
    )
    expect(samples is None or samples >= 1, f"samples must be >= 1, got {samples!r}")
    expect(0 < minutes < math.inf, f"minutes must be positive and finite, got {minutes!r}")
    arguments.seeds(seed, 1)
    seconds = None if budget is None else fronts.parse_seconds(budget)
    expect(target_rmse is None or target_rmse > 0, f"target_rmse must be positive, got {target_rmse!r}")
    subject = get_subject(model, device=chosen.get("device"))
    named = {field.name for field in fields(Axes)}
    given_axes = {name: value for name, value in chosen.items() if name in named}
    axes = Axes(**{"guidance": [subject.guidance], **subject.axes, **given_axes})
    settings = axes.combinations()
    subject.require_pictures()
    extractor = extractor_of(subject, chosen.get("features"), chosen.get("data"))
    drawer = Drawer(subject, seed)
    drawer.arguments(settings[0], 0, 1)  # refuses guidance without a condition to leave out
    store = Store(out)
    fixed = {
        "model": subject.name, "shape": list(subject.shape), "seed": seed, "reference_steps": reference_steps,
        "features": extractor.name, "device": str(subject.device),
    }  # fmt: skip
    texts = {name: str(value) for name in ("features", "data") if isinstance(value := chosen.get(name), str | Path)}
    kept = asked(
        axes, **texts, budget=budget, target_rmse=target_rmse, seed=seed, reference_steps=reference_steps,
        device=str(subject.device),
        **({"model": model} if isinstance(model, str) else {}),
    )  # fmt: skip
    with locked(store.folder):
        if (store.folder / PLAN).exists():
            found = store.begin({"fixed": fixed, "asked": kept}, resume=resume)
            planned = Plan(found["round_size"], found["rounds"], found["seconds"])
            if samples is not None:
                planned = Plan(planned.round_size, -(-samples // planned.round_size), 0.0)
        else:
            planned = make_plan(drawer, settings, samples=samples, minutes=minutes, reference_steps=reference_steps)
            times = {"round_size": planned.round_size, "rounds": planned.rounds, "seconds": planned.seconds}
            store.begin({"fixed": fixed, "asked": kept, **times}, resume=resume)
        if on_plan is not None:
            on_plan(planned, len(settings))
        sweep = Sweep(drawer, store, settings, planned, extractor, reference_steps, on_progress)
        complete = False
        try:
            if before is not None:
                before(sweep)
            sweep.run()
            complete = True
        finally:
            sweep.collect()
            if any(sweep.units.values()):
                result = conclude(sweep, rows_of(sweep), seconds, target_rmse, complete)
                write(result)
        return result


def extractor_of(subject: Subject, features: Any, data: Any) -> Extractor:
    """The extractor, with the features of the data where pictures are given."""
    from fastdiff.profiling.pictures_folder import load_pictures

    extractor = get_extractor(features if features is not None else subject.features or "pixels", device=subject.device)
    if callable(features) or ":" in str(features):  # somebody's own: tried before hours of work need it
        try:
            extractor(subject.pictures(torch.zeros(1, *subject.shape, device="cpu")))
        except Exception as error:
            said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"feature extractor {extractor.name!r} failed with a picture: {said}") from error
    if data is None:
        return extractor
    pictures = data if isinstance(data, Tensor) else load_pictures(Path(data), subject)
    return Extractor(extractor.name, extractor.function, extractor(pictures))


def conclude(sweep: Sweep, rows: list[Row], budget: float | None, target: float | None, complete: bool) -> Profile:
    """What the rows of a sweep say."""
    from fastdiff.profiling.distances import Data

    subject = sweep.drawer.subject
    known = fronts.front(rows, "rmse")
    measure = "rmse" if known else next((m for m in DISTANCES if fronts.front(rows, m)), None)
    picked, reason = None, "no setting could be judged"
    if measure is not None:
        try:
            picked, reason = fronts.pick(rows, budget=budget, target=target, measure=measure)
        except ValueError as error:
            reason = str(error)
    lines = {setting.slug: python_line(subject, setting) for setting in sweep.settings}
    count = max((row["samples"] for row in rows if not row["error"]), default=0)
    floor = None
    if sweep.extractor.data is not None and count > 4:
        floor = {name: vars(value) for name, value in Data(sweep.extractor.data).floor(count).items()}
    facts = {
        **describe(subject.device),
        "model": subject.name,
        "about": dict(subject.about),
        "shape": list(subject.shape),
        "common": common(sweep.settings),
        "seed": sweep.drawer.seed,
        "samples": count,
        "round": sweep.plan.round_size,
        "times": times_of(sweep),
        "features": sweep.extractor.name,
        "data_pictures": None if sweep.extractor.data is None else len(sweep.extractor.data),
        "data_against_data": floor,
        "budget": budget,
        "target_rmse": target,
        "complete": complete,
        "references": [
            {
                "target": setting.to_dict(),
                "solver": r.solver,
                "steps": r.steps,
                "error": r.error,
                "order": r.order,
                "count": len(r.pictures),
            }
            for setting, r in sweep.references.items()
        ],
    }
    first = {slug: units[0].shown for slug, units in sweep.units.items() if 0 in units}
    return Profile(
        subject,
        rows,
        known,
        picked,
        reason,
        lines[picked["slug"]] if picked else "",
        complete,
        sweep.store.folder,
        facts,
        lines,
        shown={slug: shown for slug, shown in first.items() if shown is not None},
        converged={target.slug: found.pictures for target, found in sweep.references.items()},
    )
