"""Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control: a source and its edits in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff import arguments
from fastdiff.editing.prompt_control import LocalBlend, PromptEdit
from fastdiff.editing.stepping import Conditions, Stepper, Times, times_of
from fastdiff.engine.calls import join
from fastdiff.errors import expect
from fastdiff.guidance import cfg_of
from fastdiff.models.parts.attention import Place, controlled
from fastdiff.process.noise import CounterNoise, Seed
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Schedule
from fastdiff.sampling import device_and_dtype
from fastdiff.solvers import Solver


def prompt_to_prompt(
    model: nn.Module,
    x_init_or_shape: Tensor | Sequence[int],
    edit: PromptEdit,
    *,
    blend: LocalBlend | None = None,
    schedule: Schedule | str | None = None,
    prediction: Prediction | str | None = None,
    solver: Solver | str = "ddim",
    grid: Times = None,
    guidance: Any = 7.5,
    cond: Conditions = None,
    uncond: Conditions | Sequence[Mapping[str, Any]] = None,
    seed: Seed = 0,
) -> Tensor:
    """The source's sample and those of its edits, (prompts, ...), from one noise (Algorithm 1).

    model: with attention that `fastdiff.models.parts.attention.controlled` reaches, as fastdiff's own models have. The
    steps are those that the edit was made for. x_init_or_shape: (1, ...), the noise of all prompts, such as the last
    state of `invert`, or its shape. edit: of `prompt_edit` or `cross_attention_control`. blend: keeps the edits to
    where their words are. cond: one row a prompt, the source's first. uncond: also one a step, such as those of
    `null_text_inversion`, on the same grid. seed: one number. The other arguments are those of `fastdiff.sample`;
    solvers that look back to earlier steps are refused.

    Attention that the edit does not change in a step runs fused, as always. Raises ValueError for arguments that do not
    fit, a condition whose length differs from that of uncond, and a blend's size that no layer has.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module with attention, got {arguments.described(model)}")
    if not isinstance(edit, PromptEdit):
        raise TypeError(f"edit must be a PromptEdit, as prompt_edit makes it, got {arguments.described(edit)}")
    given = isinstance(x_init_or_shape, Tensor)
    shape = tuple(arguments.state("x_init", x_init_or_shape).shape) if given else arguments.shape(x_init_or_shape)
    expect(shape[0] == 1, f"x_init_or_shape must be one noise for all prompts, (1, ...), got {shape}")
    if isinstance(x_init_or_shape, Tensor):
        x = x_init_or_shape
    else:
        device, dtype = device_and_dtype(model)
        x = CounterNoise.of(seed, 1).initial(shape, torch.float32).to(device, dtype)
    x = x.expand(edit.prompts, *shape[1:]).contiguous()
    _expect_text(cond, edit.prompts)
    per_step = [uncond] * edit.steps if uncond is None or isinstance(uncond, Mapping) else list(uncond)
    expect(len(per_step) == edit.steps, f"uncond must be one a step ({edit.steps}), got {len(per_step)}")
    rows = CounterNoise.of(seed, 1)
    common = dict(schedule=schedule, prediction=prediction, solver=solver, guidance=guidance, cond=cond)
    seeds = [rows.seeds[0]] * edit.prompts  # the prompts share the noise of each step
    made = {id(u): Stepper(model, x, uncond=u, seed=seeds, **common) for u in per_step}
    steppers = [made[id(u)] for u in per_step]
    first = steppers[0]
    times = times_of(first.schedule, grid, edit.steps)
    expect(len(times) - 1 == edit.steps, f"the edit is for {edit.steps} steps, and the grid has {len(times) - 1}")
    if cfg_of(first.guidance) is not None:
        whole = all(join(s.inputs.cond, s.inputs.uncond, len(x)) is not None for s in made.values())
        expect(whole, "cond and uncond must be of one length, so that the network is called for both at once")
    if not given:
        x = x * first.schedule.prior_std(times[0])
    if blend is not None:
        expect(len(blend.words) == edit.prompts, f"the blend is for {len(blend.words)} prompts, not {edit.prompts}")
    return _run(model, x, edit, blend, steppers, times)


def _run(
    model: nn.Module, x: Tensor, edit: PromptEdit, blend: LocalBlend | None, steppers: list[Stepper], times: list[float]
) -> Tensor:
    kept, drawn = edit.keep, 0
    edit.sums.clear()
    edit.sizes.clear()
    names: list[str] = []

    def keep(place: Place) -> bool:
        if blend is not None and place.kind == "cross" and place.size == blend.size:
            if place.name not in names:
                names.append(place.name)
            return True
        return kept(place)

    edit.keep = keep
    try:
        with controlled(model, edit):
            for edit.step, ((s, t), stepper) in enumerate(zip(pairwise(times), steppers)):
                stepper.drawn = drawn
                x = stepper.step(x, s, t)
                drawn = stepper.drawn
                if blend is None:
                    continue
                if not names:
                    raise ValueError(f"no cross-attention has maps of {blend.size}; there are {sorted(edit.sizes)}")
                if edit.step >= blend.first_step(edit.steps):
                    x = blend(x, torch.stack([edit.sums[name].mean(1, keepdim=True) for name in names]))
    finally:
        edit.keep = kept
    return x


def _expect_text(cond: Conditions, prompts: int) -> None:
    cond = arguments.conditions("cond", cond, prompts)
    rows = [v for v in cond.values() if isinstance(v, Tensor) and v.ndim and len(v) == prompts]
    expect(bool(rows), f"cond must have one row for each of {prompts} prompts, got {sorted(cond)}")
