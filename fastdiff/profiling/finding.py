"""`fastdiff.find`: the setting that reaches a target soonest, found within minutes and confirmed on fresh seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.errors import expect
from fastdiff.files import locked
from fastdiff.process.grids import make_grid
from fastdiff.process.noise import CounterNoise
from fastdiff.profiling.api import extractor_of
from fastdiff.profiling.asked import asked, resumed
from fastdiff.profiling.confirming import Found, confirm, reported
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.features import Extractor
from fastdiff.profiling.plan import evaluations
from fastdiff.profiling.reference import converge
from fastdiff.profiling.search import BLOCK, Search
from fastdiff.profiling.settings import Axes, Setting
from fastdiff.profiling.speeds import Speeds, calibrate
from fastdiff.profiling.step_times import step_costs
from fastdiff.profiling.store import PLAN, Store
from fastdiff.profiling.subject import Subject
from fastdiff.profiling.subjects import get_subject
from fastdiff.profiling.targets import Target

OUT = "fastdiff-find"
SIZES = ((32, 100), (16, 100), (16, 60), (8, 60), (8, 40), (4, 40))  # samples, steps of the converged trajectory
FIXED = 0.4  # of the time that is left once speeds are known, at most, for what is drawn whatever is searched
CONFIRMED = 0.8  # of the time is over when fresh samples begin, or less if they need more
TARGETS = ("target_ssim", "target_rmse", "target_frechet")
FINE = 64  # steps of the trajectory from which step times come
Progress = Callable[[str, float, float], None]


def find(
    model: str | Subject | Callable[[], Any] | None,
    *,
    target_ssim: float | None = None,
    target_rmse: float | None = None,
    target_frechet: float | None = None,
    minutes: float = 8.0,
    start: str | None = None,
    start_steps: int | None = None,
    guidance: float | None = None,
    solvers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    grids: Sequence[str | None] | None = None,
    intervals: Sequence[tuple[float, float] | None] | None = None,
    guidance_every: Sequence[int] | None = None,
    caches: Sequence[str | None] | None = None,
    precisions: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    own_times: bool | None = None,
    seed: int | None = None,
    features: str | Extractor | Callable[[Tensor], Tensor] | None = None,
    data: str | Path | Tensor | None = None,
    device: str | torch.device | None = None,
    out: str | Path = OUT,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> Found:
    """The fastest setting that reaches a target, by successive halving, with how sure that is; a report in `out`.

    model, features, data, device, out: as for `fastdiff.profile`. target_ssim, target_rmse: to the converged pictures
    from the same noise; target_frechet: Frechet distance of the features to the data; one of them at most. If none is
    given, the SSIM that the start has itself. start, start_steps: solver and steps that the user came with, run eagerly
    by PyTorch; "ddim" and 50 if None. minutes: for all of it; a resumed search gets as many again. guidance: scale; the
    model's own if None. solvers, ..., batches: values to search, see `fastdiff.profiling.settings.Setting`; if None
    those of `SPACE`. What cannot run here, or is no faster than without, is left out and said. own_times: whether step
    times are also searched on the model's own trajectory; True if None. on_progress(what, seconds, of seconds).

    Other samples than those of the search confirm it: the same noise for all, the seed after `seed`. Raises ValueError
    for arguments that no search could have, too few minutes, and a distilled model, which has a setting of its own;
    KeyboardInterrupt keeps what is done, and `resume` goes on from there.
    """
    from fastdiff.profiling.report import require

    require()
    given = {
        "solvers": solvers, "steps": steps, "grids": grids, "intervals": intervals, "guidance_every": guidance_every,
        "caches": caches, "precisions": precisions, "backends": backends, "batches": batches,
        "guidance": None if guidance is None else [guidance], "target_ssim": target_ssim, "target_rmse": target_rmse,
        "target_frechet": target_frechet, "start": start, "start_steps": start_steps, "own_times": own_times,
        "seed": seed, "features": features, "data": data,
        "device": None if device is None else str(arguments.device("device", device)),
    }  # fmt: skip
    chosen: dict[str, Any] = resumed(out, given) if resume else {k: v for k, v in given.items() if v is not None}
    model = chosen.get("model") if model is None else model
    if any(given[name] is not None for name in TARGETS):  # of a resumed search: in place of the one that it had
        chosen |= {name: given[name] for name in TARGETS}
    expect(model is not None, "model must be given; a search keeps the names of models only")
    assert model is not None
    expect(0 < minutes < math.inf, f"minutes must be positive and finite, got {minutes!r}")
    target = _target(chosen)
    seed = chosen.get("seed", 0)
    arguments.seeds(seed, 1)
    subject = get_subject(model, device=chosen.get("device"))
    expect(
        subject.teacher is None,
        f"{subject.name} is distilled for a solver and steps of its own; give the model that it is distilled from",
    )
    axes = _axes(subject, chosen)
    subject.require_pictures()
    extractor = extractor_of(subject, chosen.get("features"), chosen.get("data"))
    expect(
        target.measure != "frechet" or extractor.data is not None,
        "target_frechet needs data to compare with: give data=, a folder of pictures",
    )
    scale = float(axes.guidance[0])
    start, start_steps = chosen.get("start", "ddim"), chosen.get("start_steps", 50)
    own_times = chosen.get("own_times", True)
    came_with = Setting(start, start_steps, guidance=scale, batch=axes.batches[0], backend="reference")
    drawer = Drawer(subject, seed)
    drawer.arguments(came_with, 0, 1)  # refuses guidance without a condition to leave out
    store = Store(out)
    fixed = {
        "command": "find", "model": subject.name, "shape": list(subject.shape), "seed": seed,
        "features": extractor.name, "device": str(subject.device),
    }  # fmt: skip
    texts = {name: str(v) for name in ("features", "data") if isinstance(v := chosen.get(name), str | Path)}
    kept = asked(
        axes, **texts, **{name: chosen.get(name) for name in TARGETS}, seed=seed,
        start=start, start_steps=start_steps, own_times=own_times, device=str(subject.device),
        **({"model": model} if isinstance(model, str) else {}),
    )  # fmt: skip
    began = time.monotonic()
    whole = 60 * minutes

    def tell(what: str) -> None:
        if on_progress is not None:
            on_progress(what, min(whole, time.monotonic() - began), whole)

    with locked(store.folder):
        speeds, axes = calibrate(drawer, axes, scale, whole, tell)
        if (store.folder / PLAN).exists():
            found = store.begin({"fixed": fixed, "asked": kept}, resume=resume)
            samples, fine_steps = found["samples"], found["reference_steps"]
        else:
            samples, fine_steps = _sizes(drawer, speeds, came_with, whole, whole - (time.monotonic() - began))
            store.begin(
                {"fixed": fixed, "asked": kept, "samples": samples, "reference_steps": fine_steps}, resume=resume
            )
        base = replace(speeds.base, solver="ddim", steps=1, precision="float32")
        tell(f"converged trajectory, {fine_steps} steps")
        reference = converge(
            drawer, store, base, samples, fine_steps, samples,
            lambda *_: tell(f"converged trajectory, {fine_steps} steps"),
        )  # fmt: skip
        own = _trajectory(drawer, base, tell) if own_times else None
        fresh = _fixed(drawer, speeds, came_with, samples, fine_steps)[1]
        until = began + min(CONFIRMED * whole, max(0.4 * whole, whole - fresh))
        search = Search(
            drawer, store, extractor, reference, samples // BLOCK, came_with, target, speeds, axes, own,
            lambda: until - time.monotonic(), max(1.0, until - time.monotonic()), tell,
        )  # fmt: skip
        finalists: list[Setting] = []
        try:
            finalists = search.run()
            confirmed = confirm(search, finalists, seed + 1, began + whole)
        except KeyboardInterrupt:
            if any(search.units.values()):
                reported(search, None)
            raise
        return reported(search, confirmed)


SPACE: dict[str, Any] = {
    "solvers": ("dpmpp-2m", "deis-3", "unipc-2", "unipc-3"),
    "steps": (4, 5, 6, 7, 8, 10, 12, 15, 20),
    "grids": (None, "logsnr"),
    "intervals": (None, (-100.0, 2.0), (-3.0, 100.0), (-3.0, 2.0)),
    "guidance_every": (1, 2, 3),
    "caches": (None, "deep:2", "deep:3", "blocks:2"),
    "precisions": ("float32", "bfloat16", "bf16", "int8"),
    "backends": ("auto", "optimize"),
}


def _axes(subject: Subject, chosen: dict[str, Any]) -> Axes:
    """The values to search; every one of them is looked at here."""
    names = (*SPACE, "guidance", "batches")
    given = {name: chosen[name] for name in names if name in chosen}
    axes = Axes(**{"guidance": [subject.guidance], **SPACE, **given})
    for name, values in vars(axes).items():
        only = {other: [each[0]] for other, each in vars(axes).items() if other != name}
        replace(axes, **only, **{name: values}).combinations()
    return axes


def _target(chosen: dict[str, Any]) -> Target:
    named = [name for name in TARGETS if chosen.get(name) is not None]
    expect(len(named) <= 1, f"one target at most, got {' and '.join(named)}")
    return Target(named[0].removeprefix("target_"), chosen[named[0]]) if named else Target()


def _fixed(drawer: Drawer, speeds: Speeds, start: Setting, samples: int, steps: int) -> tuple[float, float]:
    """Seconds of what is drawn whatever is searched: in the search, and on fresh samples."""
    guided = 1 if start.guidance == 1 else 2
    eager = speeds.rows(replace(speeds.base, backend="reference", cache=None, batch=start.batch), 1.0)
    begun = samples * evaluations(drawer, start) * eager
    one = samples * steps * guided * speeds.rows(speeds.base, 1.0)
    return begun + 1.75 * one, one + 2.5 * begun


def _sizes(drawer: Drawer, speeds: Speeds, start: Setting, whole: float, left: float) -> tuple[int, int]:
    """Samples, and steps of the converged trajectory, that the seconds which are left allow, of the whole. Raises
    ValueError where none are."""
    least = math.inf
    for samples, steps in SIZES:
        least = sum(_fixed(drawer, speeds, start, samples, steps))
        if least <= FIXED * left:
            return samples, steps
    needed = least + whole - left  # speeds included
    expect(
        least <= 0.8 * left,
        f"minutes={whole / 60:g} is too short: speeds, the converged pictures and the {start.steps} steps of the start "
        f"alone take about {needed / 60:.2g} minutes; give {2 * needed / 60:.2g} or more, or fewer steps to start from",
    )
    return SIZES[-1]


def _trajectory(drawer: Drawer, base: Setting, tell: Callable[[str], None]) -> tuple[Any, Any] | None:
    """Times and costs of the model's own trajectory, None on a schedule without any."""
    setting = replace(base, solver="dpmpp-2m", steps=FINE, batch=BLOCK)
    subject = drawer.subject
    schedule: Any = subject.schedule
    times = make_grid(schedule.grid or "logsnr", schedule, FINE) if schedule.point(schedule.t_max).alpha else None
    if times is None:
        return None
    tell("step times")
    shape = (BLOCK, *subject.shape)
    states = [schedule.prior_std(times[0]) * CounterNoise.of(drawer.seed, BLOCK, 0).initial(shape, torch.float32)]
    drawer.draw(
        replace(setting, grid=tuple(times.tolist())), 0, BLOCK, lambda _, x: states.append(x.float().cpu().clone())
    )
    return times.tolist(), step_costs(schedule, times.tolist(), states)
