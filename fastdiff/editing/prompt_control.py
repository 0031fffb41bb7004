"""Edits of prompts: the controllers of prompt-to-prompt from words, and where an edit shows.

Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import arguments
from fastdiff.editing.alignment import (
    Bounds,
    Tokens,
    equalizer,
    matching_tokens,
    pair_of,
    places_of,
    refine_mapper,
    replace_mapper,
    tokens_of,
    word_steps,
)
from fastdiff.editing.map_edits import PromptEdit
from fastdiff.errors import expect, one_of

EDITS = ("replace", "refine", "reweight")


def prompt_edit(
    prompts: Sequence[str | Tokens],
    *,
    steps: int,
    length: int,
    tokenizer: Any = None,
    edit: str = "refine",
    cross: Bounds | Mapping[str, Bounds] = 0.8,
    self_attention: Bounds = 0.4,
    max_self_pixels: int = 16 * 16,
    weights: Mapping[str, float] | None = None,
    tail: str = "aligned",
) -> PromptEdit:
    """A PromptEdit for a source prompt and edits of it.

    prompts: the source first; strings need the tokenizer, a fastdiff one or one of transformers'. steps, length: of the
    run, and tokens of the model's context. edit: "replace": words swapped for as many; "refine": words added or left
    out; "reweight": the same prompt again, with weights. cross, self_attention: shares of the steps in which the
    source's maps are taken, b or (a, b); cross also by word, see `word_steps`. weights: factors of words, which every
    edit that has the word takes, beside "replace" and "refine" too. tail: see `replace_mapper`. Raises ValueError for
    prompts that cannot be aligned and words that are in no prompt.
    """
    expect(len(prompts) >= 2, f"prompts must be a source and edits of it, got {len(prompts)}")
    steps, length = arguments.whole("steps", steps, 1), arguments.whole("length", length, 1)
    one_of("edit", edit, EDITS)
    source, *targets = (p if isinstance(p, Tokens) else tokens_of(tokenizer, p) for p in prompts)
    own = torch.zeros(len(targets), length, dtype=torch.float64, device="cpu")
    if edit == "replace":
        mappers = torch.stack([replace_mapper(source, target, length, tail=tail) for target in targets])
    elif edit == "refine":
        found = torch.stack([refine_mapper(source, target, length) for target in targets])
        mappers, own = as_matrices(found), (found == -1).double()
    else:
        expect(
            all(target.ids == source.ids for target in targets) and bool(weights),
            "edit='reweight' takes the source prompt again, and weights; take 'refine' for other prompts",
        )
        mappers = torch.eye(length, dtype=torch.float64, device="cpu").expand(len(targets), length, length)
    equalizers = None
    if weights:
        for word in weights:
            places_of(word, targets)
        equalizers = torch.stack(
            [equalizer(t, {w: v for w, v in weights.items() if w in t.words}, length) for t in targets]
        )
    first, last = (int(steps * bound) for bound in pair_of(self_attention))
    alphas = word_steps(cross, targets, steps, length)
    return PromptEdit(
        mappers, own, alphas, (first, last), max_self_pixels=max_self_pixels, equalizers=equalizers
    )  # fmt: skip


def cross_attention_control(
    source: Sequence[int],
    target: Sequence[int],
    *,
    steps: int,
    token_weights: Mapping[int, float] | None = None,
    cross: Bounds = 1.0,
    self_attention: Bounds = 1.0,
    max_self_pixels: int = 64 * 64,
) -> PromptEdit:
    """bloc97/CrossAttentionControl's variant: tokens are matched by difflib on the padded ids, and the weights of
    tokens, by their places, hold in all steps, of the maps that are injected and of the target's own. Places outside of
    the context are ignored, as published."""
    expect(
        len(source) == len(target), f"source and target must be ids of one length, got {len(source)} and {len(target)}"
    )
    found = matching_tokens(source, target)[None]
    weights = torch.ones(1, len(target), dtype=torch.float64, device="cpu")
    for place, weight in (token_weights or {}).items():
        if 0 <= place < len(target):
            weights[0, place] = arguments.number(f"weight of token {place}", weight)
    alphas = word_steps(cross, [Tokens((), (), ())], arguments.whole("steps", steps, 1), len(target))
    first, last = (int(steps * bound) for bound in pair_of(self_attention))
    return PromptEdit(
        as_matrices(found), (found == -1).double(), alphas, (first, last), max_self_pixels=max_self_pixels,
        weights=weights,
    )  # fmt: skip


def as_matrices(mappers: Tensor) -> Tensor:
    """(edits, L) source tokens, -1 for none, as (edits, L, L)."""
    edits, length = mappers.shape
    made = torch.zeros(edits, length, length, dtype=torch.float64, device="cpu")
    e, j = (mappers >= 0).nonzero(as_tuple=True)
    made[e, mappers[e, j], j] = 1
    return made


@dataclass(frozen=True)
class LocalBlend:
    """Keeps an edit to where its words are (Hertz et al. 2022, Section 3.2, local editing).

    words: (prompts, L), 1 at the tokens of each prompt's words. size: (H, W) of the maps that are asked. threshold: of
    the map divided by its maximum. subtract: words around which nothing changes. start: the share of the steps in which
    nothing is blended yet.
    """

    words: Tensor
    size: tuple[int, int]
    threshold: float = 0.3
    subtract: Tensor | None = None
    subtract_threshold: float = 0.3
    start: float = 0.0

    @classmethod
    def of(
        cls,
        prompts: Sequence[Tokens],
        words: Sequence[str | Sequence[str]],
        length: int,
        size: tuple[int, int],
        *,
        subtract: Sequence[str | Sequence[str]] | None = None,
        **options: Any,
    ) -> LocalBlend:
        """From words, one or several for each prompt. Raises ValueError for a word that a prompt has not."""
        marks = [None if each is None else _marks(prompts, each, length) for each in (words, subtract)]
        assert marks[0] is not None
        return cls(marks[0], size, subtract=marks[1], **options)

    def first_step(self, steps: int) -> int:
        """The first step after which something is blended."""
        return int(self.start * steps)

    def mask(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """(prompts, 1, H, W) boolean, True where a prompt may differ from the source. maps: (layers, prompts, heads,
        pixels, L), of cross-attention; their scale is of no account. size: of the states."""
        found = self._where(maps, self.words, self.threshold, size, pooled=True)
        found = found[:1] | found
        if self.subtract is not None:
            around = self._where(maps, self.subtract, self.subtract_threshold, size, pooled=False)
            found = found & ~(around[:1] | around)
        return found

    def __call__(self, x: Tensor, maps: Tensor) -> Tensor:
        """x: (prompts, C, H, W) states; outside of the masks they become the source's."""
        return torch.where(self.mask(maps, x.shape[2:]), x, x[:1])

    def _where(self, maps: Tensor, words: Tensor, threshold: float, size: Sequence[int], *, pooled: bool) -> Tensor:
        heat = torch.einsum("nbhpl,bl->bp", maps, words.to(maps)) / (maps.shape[0] * maps.shape[2])
        heat = heat.reshape(len(heat), 1, *self.size)
        if pooled:
            heat = F.max_pool2d(heat, 3, stride=1, padding=1)
        heat = F.interpolate(heat, size=tuple(size))
        return heat / heat.amax((2, 3), keepdim=True) > threshold


def _marks(prompts: Sequence[Tokens], words: Sequence[str | Sequence[str]], length: int) -> Tensor:
    expect(len(words) == len(prompts), f"words must be one or several for each of {len(prompts)} prompts, got {words}")
    found = torch.zeros(len(prompts), length, dtype=torch.float64, device="cpu")
    for row, tokens, each in zip(found, prompts, words):
        for word in [each] if isinstance(each, str) else each:
            row[places_of(word, [tokens])[0]] = 1
    return found
