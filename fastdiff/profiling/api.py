"""`fastdiff.profile`: sweep, measure, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.errors import expect
from fastdiff.guidance import Threshold
from fastdiff.profiling import front as fronts
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.features import Extractor, get_extractor
from fastdiff.profiling.machine import describe
from fastdiff.profiling.plan import Plan, make_plan
from fastdiff.profiling.results import DISTANCES, Row, rows_of
from fastdiff.profiling.settings import combinations, common
from fastdiff.profiling.store import Store
from fastdiff.profiling.subject import Subject, get_subject
from fastdiff.profiling.sweep import Progress, Sweep
from fastdiff.profiling.usage import python_line

SOLVERS = ("ddim", "dpmpp-2m", "deis-3", "unipc-3", "heun")
STEPS = (5, 8, 12, 20, 35)
REFERENCE_STEPS = 200
MINUTES = 8.0


@dataclass(frozen=True)
class Profile:
    """What came out. rows: a dict a setting, as in results.json. front: those that no other beats. picked: the row to
    take, why, and the Python that uses it. complete: whether the sweep was not interrupted. folder: of the report."""

    subject: Subject
    rows: list[Row]
    front: list[Row]
    picked: Row | None
    reason: str
    line: str
    complete: bool
    folder: Path | None
    facts: dict[str, Any] = field(default_factory=dict)


def profile(
    model: str | Subject | Callable[[], Any],
    *,
    solvers: Sequence[str] = SOLVERS,
    steps: Sequence[int] = STEPS,
    guidance: Sequence[float] | None = None,
    intervals: Sequence[tuple[float, float] | None] = (None,),
    thresholds: Sequence[Threshold | float | None] = (None,),
    precisions: Sequence[str] = ("float32",),
    batches: Sequence[int] = (16,),
    grids: Sequence[str | None] = (None,),
    backends: Sequence[str] = ("auto",),
    caches: Sequence[str | None] = (None,),
    samples: int | None = None,
    minutes: float = MINUTES,
    reference_steps: int = REFERENCE_STEPS,
    seed: int = 0,
    features: str | Extractor | Callable[[Tensor], Tensor] | None = None,
    data: str | Path | Tensor | None = None,
    budget: str | float | None = None,
    target_rmse: float | None = None,
    out: str | Path = "fastdiff-profile",
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
    settings = combinations(
        {
            "solver": solvers, "steps": steps, "guidance": [subject.guidance] if guidance is None else guidance,
            "interval": intervals, "threshold": thresholds, "precision": precisions,
            "batch": batches, "grid": grids, "backend": backends, "cache": caches,
        }
    )  # fmt: skip
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
    picked, reason, line = None, "no setting could be judged", ""
    if measure is not None:
        try:
            picked, reason = fronts.pick(rows, budget=budget, target=target, measure=measure)
        except ValueError as error:
            reason = str(error)
    if picked is not None:
        line = python_line(subject, next(s for s in sweep.settings if s.slug == picked["slug"]))
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
    shown = {row["slug"]: sweep.units[row["slug"]][0].shown for row in rows if 0 in sweep.units.get(row["slug"], {})}
    facts["_shown"] = shown
    facts["_references"] = {s.slug: r.pictures for s, r in sweep.references.items()}
    facts["_lines"] = {s.slug: python_line(subject, s) for s in sweep.settings}
    return Profile(subject, rows, known, picked, reason, line, complete, sweep.store.folder, facts)
