"""`fastdiff.editing.inpaint`: a picture with a hole, and the checks before it is filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.arguments import described, interval
from fastdiff.editing.imputation import imputation
from fastdiff.editing.posterior import MCG, mcg
from fastdiff.editing.repaint import repaint
from fastdiff.editing.replacement import glide, palette, replacement
from fastdiff.errors import expect, one_of
from fastdiff.models.info import resolve
from fastdiff.process.grids import Grid, make_grid
from fastdiff.process.noise import CounterNoise, Seed, fixed_seeds
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Float64Array, Schedule
from fastdiff.sampling import sample
from fastdiff.solvers import Solver, get_solver

METHODS: dict[str, Callable[..., Solver | MCG]] = {
    "repaint": repaint,
    "replacement": replacement,
    "palette": palette,
    "glide": glide,
    "imputation": imputation,
    "mcg": mcg,
}


def inpaint(
    model: Callable[..., Any],
    picture: Tensor,
    mask: Tensor,
    *,
    method: str | Solver | MCG = "repaint",
    solver: Solver | str | None = None,
    steps: int = 50,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    grid: str | Grid | Float64Array | None = None,
    seed: Seed = None,
    x_init: Tensor | None = None,
    limits: tuple[float, float] | None = (-1.0, 1.0),
    **others: Any,
) -> Tensor:
    """Fill the hole of a picture with what the model finds likely there.

    picture: (B, ...), float32, float64, bfloat16 or float16; what is in the hole has no influence. mask: of its shape,
    or broadcast to it, as (B, 1, H, W); 1 or True where the picture is known and kept, 0 in the hole, and in between a
    blend. method: "repaint", "replacement", "palette", "glide", "imputation", "mcg", or what the functions of these
    names in `fastdiff.editing` return, with options. solver: that the method wraps, its own if None. x_init: the noise,
    like picture, that the run begins with; from the seed if None. limits: between which the known part must lie; None
    for any, as for latents. schedule, prediction, steps, grid, seed and others: as in `fastdiff.sample`, or, for "mcg",
    as in `fastdiff.editing.dps`.

    Returns (B, ...), like picture. With all methods but "glide", where mask is 1, the picture's own bits, if the grid
    ends at the data. Raises TypeError or
    ValueError before the run for sizes that do not fit, a mask outside [0, 1] or without a hole, and a picture outside
    of the limits; else as `fastdiff.sample`.
    """
    picture = arguments.state("picture", picture)
    known = known_and_mask(picture, mask, limits)
    chosen: Solver | MCG
    if isinstance(method, (Solver, MCG)):
        expect(solver is None, f"solver is part of the method, got {method.name!r} and {solver!r}")
        chosen = method
    else:
        one_of("method", method, METHODS)
        chosen = METHODS[method]() if solver is None else METHODS[method](get_solver(solver))
    schedule, prediction = resolve(model, schedule, prediction)
    own = chosen.solver.grid if isinstance(chosen, MCG) else chosen.grid
    times = make_grid(grid if grid is not None else schedule.grid or own, schedule, steps)
    seed = fixed_seeds(seed, len(picture))
    if x_init is None:
        counter = CounterNoise.of(seed, len(picture), others.get("first_sample", 0))
        x_init = (schedule.prior_std(times[0]) * counter.initial(picture.shape, torch.float32)).to(picture)
    x = arguments.state("x_init", x_init)
    expect(x.shape == picture.shape, f"x_init must be {tuple(picture.shape)}, like picture, got {tuple(x.shape)}")
    common = dict(schedule=schedule, prediction=prediction, grid=times, seed=seed, **others)
    if isinstance(chosen, MCG):
        return chosen.run(model, x, **known, **common)
    return sample(model, x, solver=chosen, tensors=known, **common)


def known_and_mask(picture: Tensor, mask: Tensor, limits: tuple[float, float] | None) -> dict[str, Tensor]:
    """The tensors of a run. Raises TypeError or ValueError for what does not fit."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, 1 where the picture is known, got {described(mask)}")
    shapes = zip(reversed(mask.shape), reversed(picture.shape))
    fits = mask.ndim <= picture.ndim and all(own in (1, wanted) for own, wanted in shapes)
    expect(fits, f"mask must have the picture's size {tuple(picture.shape)}, got {tuple(mask.shape)}")
    mask = mask.to(picture.device, torch.promote_types(picture.dtype, torch.float32))
    inside = bool(((mask >= 0) & (mask <= 1)).all())
    expect(inside, "mask must lie in [0, 1]: 1 where the picture is known, 0 in the hole")
    expect(bool((mask < 1).any()), "mask has no hole: it is 1, for known, everywhere")
    known = torch.where(mask > 0, picture, torch.zeros((), dtype=picture.dtype, device=picture.device))
    expect(bool(torch.isfinite(known).all()), "picture holds values that are NaN or infinite where it is known")
    if limits is not None:
        low, high = interval("limits", limits)
        least, most = known.min().item(), known.max().item()
        where = f"picture must lie in [{low:g}, {high:g}] where it is known"
        expect(low <= least and most <= high, f"{where}, got {least:g} to {most:g}; limits=None takes any")
    return {"known": known, "mask": mask}
