"""`fastdiff.cascade`: a base model and the networks that enlarge its pictures, as one call (Ho et al. 2021, Cascaded
Diffusion Models)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import arguments
from fastdiff.errors import expect, unknown
from fastdiff.models.info import resolve
from fastdiff.process.grids import make_grid
from fastdiff.process.noise import CounterNoise, Seed, fixed_seeds, seeds_for
from fastdiff.process.schedules import Float64Array, Point, Schedule, get_schedule
from fastdiff.sampling import device_and_dtype, sample
from fastdiff.solvers import get_solver

ENLARGE = ("nearest", "bilinear", "bicubic")
# Of `fastdiff.sample`, what is the cascade's affair.
_OWN = ("model", "x_init_or_shape", "seed", "first_sample", "start", "noise")
_OPTIONS = [name for name in inspect.signature(sample).parameters if name not in _OWN]


class Stage:
    """A model of a cascade and how it is sampled.

    model: as in `fastdiff.sample`. shape: of one sample, (C, H, W). options: those of `fastdiff.sample`, each stage's
    own: schedule, prediction, solver, steps, grid, guidance, threshold, cond, uncond, ...

    Of all stages but the first:
    takes: the argument by which the model gets the stage before's pictures; they join cond and, where it is given,
        uncond. enlarge: "nearest", "bilinear" or "bicubic", to this stage's size; None leaves it to the model.
    augment: a time of the noise that is added to those pictures, so that the errors of the stage before do not matter
        (noise-conditioning augmentation, Ho et al. 2021, Section 4): alpha x0 + sigma eps; None for none. schedule of
        that noise: augment_schedule, or that of the stage before. truncated: the stage before stops at that time
        instead, which saves its last steps (Section 4.2, Algorithm 2); its pictures are then seen by nobody.
        enlarge_first: noise on the enlarged pictures, as Saharia et al. 2022, Imagen, Section 2.3.
    level: the argument by which the model is told of the noise, (B,); level_of(point) -> its value, the schedule's
        `model_time` of the time if None. E.g. lambda point: 2 * point.lam for a log signal-to-noise ratio.

    Raises TypeError or ValueError for arguments that do not fit.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        shape: Sequence[int],
        *,
        takes: str | None = None,
        enlarge: str | None = None,
        augment: float | None = None,
        augment_schedule: Schedule | str | None = None,
        truncated: bool = False,
        enlarge_first: bool = False,
        level: str | None = None,
        level_of: Callable[[Point], float] | None = None,
        **options: Any,
    ) -> None:
        arguments.network(model)
        for name in options:
            if name not in _OPTIONS:
                raise unknown("option of a stage", name, _OPTIONS)
        if enlarge is not None and enlarge not in ENLARGE:
            raise unknown("enlarge", enlarge, ENLARGE)
        expect(augment is not None or not truncated, "truncated needs augment, the time at which to stop")
        expect(augment is not None or level is None, "level needs augment, the time of the noise")
        expect(
            not truncated or (augment_schedule is None and not enlarge_first),
            "truncated: the noise is that of the stage before, so that augment_schedule and enlarge_first have no use",
        )
        self.model, self.shape, self.options = model, arguments.shape(shape), options
        if takes is not None and not isinstance(takes, str):
            raise TypeError(f"takes must be the name of an argument of the model, got {arguments.described(takes)}")
        self.takes, self.enlarge, self.enlarge_first = takes, enlarge, enlarge_first
        self.augment = None if augment is None else arguments.number("augment", augment)
        self.augment_schedule = None if augment_schedule is None else get_schedule(augment_schedule)
        self.truncated, self.level, self.level_of = truncated, level, level_of

    @property
    def schedule(self) -> Schedule:
        """The stage's own, or its model's. Raises ValueError where neither says it."""
        return resolve(self.model, self.options.get("schedule"), self.options.get("prediction"))[0]


def cascade(
    stages: Sequence[Stage],
    batch: int,
    *,
    seed: Seed = None,
    first_sample: int = 0,
    on_stage: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Samples of the last of several stages, each of which enlarges what the one before has drawn.

    batch: how many. seed, first_sample: as in `fastdiff.sample`; the first stage draws what `sample` draws with that
    seed, and the others, and the noise between them, have noise of their own. on_stage(number, samples): after each
    stage, e.g. to keep its pictures.

    Returns (batch, *shape of the last stage) in the dtype and on the device of its model. Raises TypeError or
    ValueError for arguments that do not fit, SamplingError as `fastdiff.sample`.
    """
    expect(len(stages) > 0, "stages must hold at least one")
    for number, stage in enumerate(stages):
        if not isinstance(stage, Stage):
            raise TypeError(f"stages[{number}] must be a fastdiff.Stage, got {type(stage).__name__}")
        says = "say" if number else "not say"
        expect(
            (stage.takes is None) == (number == 0),
            f"stages[{number}] must {says} what it takes, the model's argument for the pictures of the stage before",
        )
    batch = arguments.whole("batch", batch, 1)
    seeds = fixed_seeds(seed, batch)
    small: Tensor | None = None
    for number, stage in enumerate(stages):
        options = dict(stage.options)
        if small is not None:
            noise = CounterNoise.of(seeds_for(seeds, 2 * number - 1), batch, first_sample)
            given = _conditions(stage, stages[number - 1], small, noise)
            options["cond"] = {**(options.get("cond") or {}), **given}
            if options.get("uncond") is not None:
                options["uncond"] = {**options["uncond"], **given}
        after = stages[number + 1] if number + 1 < len(stages) else None
        if after is not None and after.truncated:
            assert after.augment is not None
            options["grid"] = _until(stage, after.augment)
        small = sample(
            stage.model, (batch, *stage.shape), seed=seeds_for(seeds, 2 * number), first_sample=first_sample, **options
        )
        if on_stage is not None:
            on_stage(number, small)
    assert small is not None
    return small


def _conditions(stage: Stage, before: Stage, small: Tensor, noise: CounterNoise) -> dict[str, Tensor]:
    """What a stage is given of the pictures of the one before it."""
    assert stage.takes is not None
    device, dtype = device_and_dtype(stage.model)
    small = small.to(device)
    if stage.enlarge_first:
        small = _enlarged(small, stage)
    told: dict[str, Tensor] = {}
    if stage.augment is not None:
        schedule = stage.augment_schedule or before.schedule
        point = schedule.point(stage.augment)
        if not stage.truncated:
            eps = noise.initial(small.shape, torch.promote_types(small.dtype, torch.float32)).to(device)
            small = point.alpha * small + point.sigma * eps
        if stage.level is not None:
            value = schedule.model_time(point.t) if stage.level_of is None else stage.level_of(point)
            told[stage.level] = torch.full((len(small),), float(value), dtype=torch.float32, device=device)
    if not stage.enlarge_first:
        small = _enlarged(small, stage)
    return {stage.takes: small.to(dtype), **told}


def _enlarged(small: Tensor, stage: Stage) -> Tensor:
    if stage.enlarge is None:
        return small
    size = stage.shape[1:]
    return F.interpolate(small, size, mode=stage.enlarge, align_corners=None if stage.enlarge == "nearest" else False)


def _until(stage: Stage, end: float) -> Float64Array:
    """The stage's grid down to `end`, where the state is what the next stage takes."""
    schedule, method = stage.schedule, get_solver(stage.options.get("solver", "dpmpp-2m"))
    grid = stage.options.get("grid")
    steps = stage.options.get("steps", inspect.signature(sample).parameters["steps"].default)
    times = make_grid(grid if grid is not None else schedule.grid or method.grid, schedule, steps)
    expect(
        times[-1] < end < times[0],
        f"augment must lie within the grid of the stage before, ({times[-1]:g}, {times[0]:g}), got {end!r}",
    )
    return np.concatenate([times[times > end], [end]])
