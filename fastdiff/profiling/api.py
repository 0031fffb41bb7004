"""`fastdiff.profile`: sweep, measure, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.errors import expect
from fastdiff.guidance import Threshold
from fastdiff.profiling import front as fronts
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.features import Extractor, get_extractor
from fastdiff.profiling.find import get_subject
from fastdiff.profiling.machine import describe
from fastdiff.profiling.plan import Plan, make_plan
from fastdiff.profiling.results import DISTANCES, Profile, rows_of
from fastdiff.profiling.settings import Axes, common
from fastdiff.profiling.store import Store
from fastdiff.profiling.subject import Subject
from fastdiff.profiling.sweep import Progress, Sweep
from fastdiff.profiling.usage import python_line

OUT = "fastdiff-profile"


def profile(
    model: str | Subject | Callable[[], Any],
    *,
    solvers: Sequence[str] = Axes.solvers,
    steps: Sequence[int] = Axes.steps,
    guidance: Sequence[float] | None = None,
    intervals: Sequence[tuple[float, float] | None] = Axes.intervals,
    thresholds: Sequence[Threshold | float | None] = Axes.thresholds,
    precisions: Sequence[str] = Axes.precisions,
    batches: Sequence[int] = Axes.batches,
    grids: Sequence[str | None] = Axes.grids,
    backends: Sequence[str] = Axes.backends,
    caches: Sequence[str | None] = Axes.caches,
    samples: int | None = None,
    minutes: float = 8.0,
    reference_steps: int = 200,
    seed: int = 0,
    features: str | Extractor | Callable[[Tensor], Tensor] | None = None,
    data: str | Path | Tensor | None = None,
    budget: str | float | None = None,
    target_rmse: float | None = None,
    out: str | Path = OUT,
    resume: bool = False,
    on_progress: Progress | None = None,
    on_plan: Callable[[Plan, int], None] | None = None,
) -> Profile:
    """Every combination of the settings: time and model calls a sample, distance to the converged trajectory from the
    same noise, distances of the distribution; the front; and a report in `out`.

    model: a bundled model's name, a folder in diffusers' layout, an entry point `module:function`, or a `Subject`.
    solvers, steps, guidance, ..., caches: the values to combine, see `fastdiff.profiling.settings.Setting`; guidance is
    the model's own if None. samples: of every setting (rounded up to whole rounds); if None, as many as fit into
    `minutes`. reference_steps: of the converged trajectory, a multiple of 4. features: what distributions are compared
    on, see `get_extractor`; data: a folder of pictures, or pictures (N, C, H, W) in [-1, 1], to compare with. budget:
    the most that a sample may take, "2s" or seconds; target_rmse: the RMSE to reach, pixels in [-1, 1].
    resume: go on with the sweep in `out`. on_progress(what, done, total); on_plan(plan, number of settings).

    A combination that fails is a row with its error. KeyboardInterrupt writes the report of what is there, then is
    raised again. Raises ValueError for arguments that no run could have, before anything is computed, and OSError if
    the folder cannot be written.
    """
    from fastdiff.profiling.report import require, write

    require()
    expect(
        isinstance(reference_steps, int) and reference_steps >= 8 and reference_steps % 4 == 0,
        f"reference_steps must be a multiple of 4, at least 8, got {reference_steps!r}",
    )
    expect(samples is None or samples >= 1, f"samples must be >= 1, got {samples!r}")
    expect(minutes > 0, f"minutes must be positive, got {minutes!r}")
    seconds = None if budget is None else fronts.parse_seconds(budget)
    expect(target_rmse is None or target_rmse > 0, f"target_rmse must be positive, got {target_rmse!r}")
    subject = get_subject(model)
    axes = Axes(
        solvers=solvers, steps=steps, guidance=[subject.guidance] if guidance is None else guidance,
        intervals=intervals, thresholds=thresholds, precisions=precisions, batches=batches, grids=grids,
        backends=backends, caches=caches,
    )  # fmt: skip
    settings = axes.combinations()
    extractor = _extractor(subject, features, data)
    drawer = Drawer(subject, seed)
    drawer.arguments(settings[0], 0, 1)  # refuses guidance without a condition to leave out
    store = Store(out)
    targets = {setting.target for setting in settings}
    fixed = {
        "model": subject.name, "shape": list(subject.shape), "seed": seed, "reference_steps": reference_steps,
        "features": extractor.name,
    }  # fmt: skip
    if resume and (store.folder / "plan.json").exists():
        found = store.begin({"fixed": fixed}, resume=True)
        planned = Plan(found["round_size"], found["rounds"], found["seconds"])
        if samples is not None:
            planned = Plan(planned.round_size, -(-samples // planned.round_size), 0.0)
    else:
        if (store.folder / "plan.json").exists():
            store.begin({"fixed": fixed}, resume=resume)
        reference_rows = sum(1.75 * reference_steps * (1 if t.cfg() is None else 2) for t in targets)
        planned = make_plan(drawer, settings, samples=samples, minutes=minutes, reference_rows=reference_rows)
        store.begin({"fixed": fixed, **vars(planned)}, resume=resume)
    if on_plan is not None:
        on_plan(planned, len(settings))
    sweep = Sweep(drawer, store, settings, planned, extractor, reference_steps, on_progress)
    complete = False
    try:
        sweep.run()
        complete = True
    finally:
        sweep.collect()
        if any(sweep.units.values()):
            result = _conclude(sweep, seconds, target_rmse, complete)
            write(result)
    return result


def _extractor(subject: Subject, features: Any, data: Any) -> Extractor:
    from fastdiff.profiling.pictures_folder import load_pictures

    extractor = get_extractor(features if features is not None else subject.features or "pixels")
    if data is None:
        return extractor
    pictures = data if isinstance(data, Tensor) else load_pictures(Path(data), subject)
    return Extractor(extractor.name, extractor.function, extractor(pictures))


def _conclude(sweep: Sweep, budget: float | None, target: float | None, complete: bool) -> Profile:
    from fastdiff.profiling.distances import Data

    subject, rows = sweep.drawer.subject, rows_of(sweep)
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
        **describe(),
        "model": subject.name,
        "about": dict(subject.about),
        "shape": list(subject.shape),
        "common": common(sweep.settings),
        "seed": sweep.drawer.seed,
        "samples": count,
        "round": sweep.plan.round_size,
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
