"""DiffEdit: Couairon et al. 2022, DiffEdit: Diffusion-based Semantic Image Editing with Mask Guidance."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.editing.ddim_inversion import invert
from fastdiff.editing.stepping import Conditions, Stepper, Times, times_of
from fastdiff.errors import expect
from fastdiff.process.noise import CounterNoise, Seed
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Schedule


def diffedit_mask(
    model: Callable[..., Any],
    x0: Tensor,
    *,
    t: float = 0.5,
    maps: int = 10,
    clip: float = 3.0,
    threshold: float = 0.5,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    guidance: Any = None,
    source: Conditions = None,
    target: Conditions = None,
    uncond: Conditions = None,
    seed: Seed = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Where two texts see different noise in a picture: (B, H, W), 1 where it is to be edited (Section 3.2, step 1).

    x0: (B, C, H, W) pictures or latents. t: the schedule's time of the noise that is added. maps: over how many noises
    the differences |eps(target) - eps(source)| are averaged, beside the channels. clip: they are limited to that many
    times their mean over the batch, and divided by the limit, which takes the outliers out; threshold: of the result.
    source, target: the model's arguments for what is in the picture and what it shall be. noise: (B maps, C, H, W), the
    noises of one picture after each other, instead of those from seed. guidance: both predictions are guided against
    uncond; the paper has none. Raises ValueError for arguments that do not fit.
    """
    x0 = arguments.state("x0", x0)
    expect(x0.ndim == 4, f"x0 must be (B, C, H, W), got {tuple(x0.shape)}")
    maps, t = arguments.whole("maps", maps, 1), arguments.number("t", t)
    clip, threshold = arguments.number("clip", clip), arguments.number("threshold", threshold)
    expect(clip > 0, f"clip must be positive, got {clip!r}")
    repeated = x0.repeat_interleave(maps, 0)
    if noise is None:
        noise = CounterNoise.of(seed, len(repeated)).initial(repeated.shape, torch.float32).to(x0)
    expect(noise.shape == repeated.shape, f"noise must be {tuple(repeated.shape)}, got {tuple(noise.shape)}")
    common = dict(schedule=schedule, prediction=prediction, guidance=guidance)
    texts = [
        Stepper(model, repeated, cond=_repeated(c, maps, len(x0)), uncond=_repeated(uncond, maps, len(x0)), **common)
        for c in (source, target)
    ]
    p = texts[0].schedule.point(t)
    z = p.alpha * repeated + p.sigma * noise
    of_source, of_target = (text.eps(z, t) for text in texts)
    d = (of_target - of_source).abs().reshape(len(x0), maps, *x0.shape[1:]).mean((1, 2))
    limit = clip * d.mean()
    return (d.clamp(max=limit) / limit > threshold).to(x0.dtype)


def _repeated(conditions: Conditions, maps: int, batch: int) -> Conditions:
    """One row for each map of each picture."""
    if conditions is None:
        return None
    rows = lambda v: v.repeat_interleave(maps, 0) if isinstance(v, Tensor) and v.ndim and len(v) == batch else v  # noqa: E731
    return {
        key: _repeated(value, maps, batch) if isinstance(value, dict) else rows(value)
        for key, value in arguments.conditions("conditions", conditions, batch).items()
    }


def diffedit(
    model: Callable[..., Any],
    x0: Tensor,
    mask: Tensor,
    *,
    strength: float = 0.8,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    steps: int = 50,
    grid: Times = None,
    guidance: Any = None,
    source: Conditions = None,
    target: Conditions = None,
    uncond: Conditions = None,
    evaluate: str = "start",
    blend: str = "end",
) -> Tensor:
    """The picture with its masked part as the target text says, (B, ...) like x0 (Section 3.2, steps 2 and 3).

    x0: (B, C, H, W). mask: (B or 1, H, W) or (B or 1, C or 1, H, W), 1 where the picture changes, of `diffedit_mask` or
    drawn. strength: the share of the steps that is inverted with the source's arguments and decoded with the target's;
    outside of the mask the inversion's states are put back after each step. blend: "end": those of the step's end, as
    in the paper; "start": those of its start, one level more noisy, as diffusers does. evaluate: as of `invert`;
    diffusers' is "end". The other arguments are those of `fastdiff.sample`; guidance is for both directions. Raises
    ValueError for arguments that do not fit: masks of other sizes, and without a part to change, too.
    """
    x0 = arguments.state("x0", x0)
    mask = edit_mask(mask, x0)
    expect(blend in ("start", "end"), f"blend must be 'start' or 'end', got {blend!r}")
    strength = arguments.number("strength", strength)
    expect(0 < strength <= 1, f"strength must lie in (0, 1], got {strength!r}")
    common = dict(schedule=schedule, prediction=prediction, guidance=guidance, uncond=uncond)
    stepper = Stepper(model, x0, cond=target, **common)
    times = times_of(stepper.schedule, grid, steps)
    kept = int((len(times) - 1) * strength)
    expect(kept >= 1, f"strength {strength!r} leaves none of the {len(times) - 1} steps")
    times = times[-kept - 1 :]
    states = invert(model, x0, grid=times, cond=source, evaluate=evaluate, **common).flip(0)
    x = states[0]
    for k, (s, t) in enumerate(itertools.pairwise(times)):
        x = stepper.step(x, s, t)
        x = torch.where(mask.bool(), x, states[k + 1 if blend == "end" else k])
    return x


def edit_mask(mask: Tensor, x0: Tensor) -> Tensor:
    """The mask of an edit as (B or 1, C or 1, H, W). Raises ValueError for another size, other values than 0 and 1, and
    a mask that leaves nothing to change."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor (B, H, W), got {arguments.described(mask)}")
    expect(x0.ndim == 4, f"x0 must be (B, C, H, W), got {tuple(x0.shape)}")
    found = mask[:, None] if mask.ndim == 3 else mask
    fits = found.ndim == 4 and all(m in (1, n) for m, n in zip(found.shape[:2], x0.shape))
    fits = fits and found.shape[2:] == x0.shape[2:]
    expect(fits, f"mask must be (B or 1, H, W) for x0 {tuple(x0.shape)}, got {tuple(mask.shape)}")
    expect(bool(((found == 0) | (found == 1)).all()), "mask must hold 0 and 1, 1 where the picture changes")
    expect(bool(found.any()), "mask is 0 everywhere, so that nothing would change")
    return found
