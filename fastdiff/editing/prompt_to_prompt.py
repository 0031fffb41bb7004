"""Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control: a source and its edits in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff import arguments
from fastdiff.editing.prompt_control import LocalBlend, PromptEdit
from fastdiff.editing.stepping import Conditions, Draws, Times, take_steps, times_of
from fastdiff.engine import Inputs
from fastdiff.engine.adaptive import CheckedModel
from fastdiff.engine.calls import join
from fastdiff.errors import expect
from fastdiff.guidance import cfg_of, gradients_of, make_guidance
from fastdiff.models.info import resolve
from fastdiff.models.parts.attention import Place, controlled
from fastdiff.process.noise import CounterNoise, Seed
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Point, Schedule
from fastdiff.running import make_inputs
from fastdiff.runtime import choice, runs
from fastdiff.sampling import device_and_dtype
from fastdiff.solvers import Solver, get_solver


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

    model: with cross-attention that `fastdiff.models.parts.attention.controlled` reaches, as fastdiff's own models and
    diffusers' have. The steps are those that the edit was made for. x_init_or_shape: (1, ...), the noise of all
    prompts, such as the last state of `invert`, or its shape. edit: of `prompt_edit` or `cross_attention_control`.
    blend: keeps the edits to where their words are. cond: one row a prompt, the source's first. uncond: also one a
    step, such as those of `null_text_inversion`, on the same grid. seed: one number. The other arguments are those of
    `fastdiff.sample`. solver: any that does not choose its own steps. The edit counts the intervals of the grid and not
    the calls: all calls of a step are edited alike, those of a step of several intervals as in the first one. A
    multistep solver looks back to what the network saw before the blend. Steps run in PyTorch, not as a Program.

    Attention runs fused, edited or not; maps are made of the layers that the blend asks, and of those with a mask. An
    optimized model runs as it is written. Raises ValueError for arguments that do not fit, a condition whose length
    differs from that of uncond, a model whose cross-attention is not reached, and a blend's size that no layer has.
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
    arguments.beside_model("x_init", x, model)
    schedule, prediction = resolve(model, schedule, prediction)
    method, guidance = get_solver(solver), make_guidance(guidance)
    fixed = not method.adaptive and method.route is None
    expect(fixed, f"prompt_to_prompt needs a solver that takes the grid's steps, and {method.name!r} has its own")
    times = times_of(schedule, grid, edit.steps)
    expect(len(times) - 1 == edit.steps, f"the edit is for {edit.steps} steps, and the grid has {len(times) - 1}")
    if not given:
        x = x * schedule.prior_std(times[0])
    if blend is not None:
        expect(len(blend.words) == edit.prompts, f"the blend is for {len(blend.words)} prompts, not {edit.prompts}")
    seeds = [CounterNoise.of(seed, 1).seeds[0]] * edit.prompts  # the prompts share the noise of each step
    counter = CounterNoise.of(seeds, len(x))
    gradients = {name: term.gradient for name, term in gradients_of(guidance).items()}
    per_step = [uncond] * edit.steps if uncond is None or isinstance(uncond, Mapping) else list(uncond)
    expect(len(per_step) == edit.steps, f"uncond must be one a step ({edit.steps}), got {len(per_step)}")
    cfg = cfg_of(guidance)
    made = {id(u): make_inputs(x, counter, None, cond, u if cfg is not None else None, gradients) for u in per_step}
    if cfg is not None:
        expect(
            all(u is not None for u in per_step), "guidance needs uncond, the model's arguments without the condition"
        )
        whole = all(join(each.cond, each.uncond, len(x)) is not None for each in made.values())
        expect(whole, "cond and uncond must be of one length, so that the network is called for both at once")
    inputs = [made[id(u)] for u in per_step]
    step = CheckedModel(
        f"prompt_to_prompt, {method.name}", model, schedule, prediction, x, inputs[0], guidance=guidance
    )
    step.grid = schedule.points(times)
    choice.note("prompt_to_prompt", "attention differs from step to step, so that steps run in PyTorch")
    with controlled(model, edit), torch.inference_mode(False), torch.no_grad(), runs.one():
        return _run(method, step, x, edit, blend, inputs)


def _run(
    method: Solver, model: CheckedModel, x: Tensor, edit: PromptEdit, blend: LocalBlend | None, inputs: list[Inputs]
) -> Tensor:
    kept, names = edit.keep, list[str]()
    edit.sums.clear()
    edit.sizes.clear()
    edit.step = 0

    def keep(place: Place) -> bool:
        if blend is not None and place.kind == "cross" and place.size == blend.size:
            if place.name not in names:
                names.append(place.name)
            return True
        return kept(place)

    def after(model: CheckedModel, x: Tensor, s: Point, t: Point, noise: Callable[[], Tensor]) -> Tensor:
        done = edit.step + 1 + len(model.inner)  # intervals of the grid
        if not edit.sizes:
            raise ValueError("the edit reaches no cross-attention: it sees that of fastdiff's and diffusers' networks")
        if blend is not None and not names:
            raise ValueError(f"no cross-attention has maps of {blend.size}; there are {sorted(edit.sizes)}")
        if blend is not None and done > blend.first_step(edit.steps):
            x = blend(x, torch.stack([edit.sums[name].mean(1, keepdim=True) for name in names]))
        if done < edit.steps:
            edit.step = done
            model.change(inputs[done])
        return x

    edit.keep = keep
    try:
        state = x.to(torch.promote_types(x.dtype, torch.float32))
        return take_steps(method, model, state, Draws(inputs[0], state), after).to(x.dtype)
    finally:
        edit.keep = kept


def _expect_text(cond: Conditions, prompts: int) -> None:
    cond = arguments.conditions("cond", cond, prompts)
    rows = [v for v in cond.values() if isinstance(v, Tensor) and v.ndim and len(v) == prompts]
    expect(bool(rows), f"cond must have one row for each of {prompts} prompts, got {sorted(cond)}")
