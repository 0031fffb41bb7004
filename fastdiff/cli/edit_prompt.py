"""`fastdiff edit prompt`: a picture and the same one with another prompt, by the source's attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import editing
from fastdiff.cli.drawing import counted
from fastdiff.cli.edit_files import Asked, Outputs, read
from fastdiff.cli.picture_model import PictureModel
from fastdiff.editing import LocalBlend, PromptEdit, Tokens, tokens_of
from fastdiff.editing.alignment import places_of
from fastdiff.editing.prompt_control import EDITS
from fastdiff.errors import expect, unknown
from fastdiff.models.bundled.conditioned import PromptLatentDiffusion
from fastdiff.models.info import PromptInfo
from fastdiff.models.parts.attention import Controller, Place, controlled
from fastdiff.solvers import get_solver

NULL_STEPS, LEARNING_RATE = 5, 0.05  # of null-text inversion, found with emoji-ldm-64


def run(
    asked: Asked,
    outputs: Outputs,
    source: str,
    image: str | None,
    mode: str | None,
    cross: float,
    self_attention: float,
    weights: Sequence[str],
    blend: str | None,
    blend_threshold: float,
    null_steps: int | None,
    solver_name: str,
    steps: int,
) -> None:
    """See `fastdiff edit prompt --help`."""
    solver = get_solver(solver_name)
    expect(image is None or solver.name == "ddim", f"--image is inverted by ddim, and not by --solver {solver.name}")
    expect(null_steps is None or image is not None, "--null-steps needs --image")
    model, text = _opened(asked, source, bool(weights))
    prompts = [tokens_of(text.tokenizer, source), tokens_of(text.tokenizer, asked.prompt or source)]
    edit = _edit(prompts, text.length, mode, cross, self_attention, weights, steps)
    blended = None if blend is None else _blend(model, prompts, text.length, blend, blend_threshold)
    picture = None if image is None else read(image, model.size())
    both = model.given(0, 2)
    common = {key: both[key] for key in ("schedule", "prediction")}
    inner = NULL_STEPS if null_steps is None else null_steps
    calls = steps if picture is None else steps * (inner + 4)
    with outputs.folders(*([] if picture is None else [picture])):
        with counted(model, f"prompt-to-prompt, {steps} step{'s' * (steps != 1)}", calls) as elapsed:
            start: Tensor | tuple[int, ...] = (1, *model.shape)
            if picture is not None:
                one = model.given(0, 1)
                states = editing.invert(
                    model.network, model.samples(picture.values), steps=steps, cond=one["cond"], **common
                )
                null = editing.null_text_inversion(
                    model.network, states, steps=steps, guidance=model.scale, cond=one["cond"], uncond=one["uncond"],
                    name=text.argument, inner_steps=inner, lr=LEARNING_RATE, **common,
                )  # fmt: skip
                start, both["uncond"] = states[-1], null.uncond
            x = editing.prompt_to_prompt(
                model.network, start, edit, blend=blended, solver=solver, seed=asked.seed, **both  # type: ignore[arg-type]
            )  # fmt: skip
        found = model.pictures(x).cpu()
        before = found[:1] if picture is None else picture.values
        kept = None
        if blended is not None:
            kept = F.interpolate((x[0] == x[1]).all(0)[None, None].float().cpu(), model.size()) > 0
        facts = {"image": image, "source": source, "mode": mode, "solver": solver.name, "steps": steps}
        outputs.save(before, kept, found[1:], {**asked.facts(model), **facts, "seconds": round(elapsed.seconds, 3)})


class _Text(NamedTuple):
    """How a model is given prompts. argument: of its call, which has `length` tokens."""

    tokenizer: Any
    argument: str
    length: int


def _opened(asked: Asked, source: str, weighted: bool) -> tuple[PictureModel, _Text]:
    expect(asked.class_name is None, "fastdiff edit prompt takes --prompt, no --class")
    expect(asked.prompt is not None or weighted, "--prompt is needed: the words of --source with some of them changed")
    model = asked.opened_for_two(source, same=weighted)
    if isinstance(model.network, PromptLatentDiffusion):
        info = model.network.info
        assert isinstance(info, PromptInfo)
        return model, _Text(info.tokenizer, "context", info.tokenizer.length)
    folder, argument = Path(asked.model) / "tokenizer", "encoder_hidden_states"
    expect(
        folder.is_dir(),
        "fastdiff edit prompt needs a bundled model that takes prompts, such as emoji-ldm-64, or a diffusers folder "
        f"with a tokenizer, not {asked.model}",
    )
    from transformers import AutoTokenizer  # is there: the folder was opened with it

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model, _Text(tokenizer, argument, model.conditions(0, 1)[0][argument].shape[1])


def _edit(
    prompts: Sequence[Tokens], length: int, mode: str | None, cross: float, self_attention: float,
    weights: Sequence[str], steps: int,
) -> PromptEdit:  # fmt: skip
    """mode: None for what fits: the same words again, as many words, or others."""
    source, target = prompts
    if mode is not None and mode not in EDITS:
        raise unknown("--mode", mode, EDITS)
    if mode is None:
        as_many = "replace" if len(source.words) == len(target.words) else "refine"
        mode = "reweight" if source.words == target.words else as_many
    expect(
        mode != "replace" or len(source.words) == len(target.words),
        f"{source.prompt!r} and {target.prompt!r} cannot be aligned word by word: they have {len(source.words)} and "
        f"{len(target.words)} words; --mode refine adds words and leaves them out",
    )
    factors = {}
    for each in weights:
        word, _, number = each.partition("=")
        try:
            factors[word.strip()] = float(number)
        except ValueError:
            raise ValueError(f"--weight must be like red=2, got {each!r}") from None
    for option, value in (("--cross", cross), ("--self", self_attention)):
        expect(0 <= value <= 1, f"{option} is a share of the steps in [0, 1], got {value:g}")
    return editing.prompt_edit(
        prompts, steps=steps, length=length, edit=mode, cross=cross, self_attention=self_attention,
        weights=factors or None,
    )  # fmt: skip


class _Sizes(Controller):
    """Which sizes the maps of cross-attention have."""

    def __init__(self) -> None:
        self.found: set[tuple[int, ...]] = set()

    def wants(self, place: Place) -> bool:
        if place.kind == "cross" and len(place.size) == 2:
            self.found.add(place.size)
        return False


def _blend(model: PictureModel, prompts: Sequence[Tokens], length: int, words: str, threshold: float) -> LocalBlend:
    """words: one for both prompts, or one each. The maps are those of the layer with the most pixels."""
    expect(0 < threshold < 1, f"--blend-threshold must lie between 0 and 1, got {threshold:g}")
    parts = [word.strip() for word in words.split(",")]
    expect(
        len(parts) in (1, 2) and all(parts),
        f"--blend must be like heart, or apple,pear for both prompts, got {words!r}",
    )
    each = parts * (3 - len(parts))
    for word, tokens in zip(each, prompts):
        places_of(word, [tokens])  # before the network is called
    sizes = _Sizes()
    cond = model.conditions(0, 1)[0]
    assert isinstance(model.network, nn.Module)
    with controlled(model.network, sizes), torch.no_grad():
        x = torch.zeros(1, *model.shape, device=model.device, dtype=model.dtype)
        model.network(x, torch.zeros(1, device=model.device), **cond)
    expect(bool(sizes.found), f"--blend needs cross-attention on a grid, and none of {model.name} is seen")
    height, width = max(sizes.found)
    return LocalBlend.of(prompts, each, length, (height, width), threshold=threshold)
