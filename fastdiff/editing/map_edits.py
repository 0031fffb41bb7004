"""The controller of prompt-to-prompt: maps of the source prompt in place of those of the edited ones.

Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control. Row 0 of a batch is the source prompt,
the others are edits of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.models.parts.attention import Controller, Place
from fastdiff.ops.attention import attention

Share = tuple[Tensor | None, Tensor | None]


class PromptEdit(Controller):
    """Changes the maps of the edited prompts in the conditional half of a call, never the source's.

    mappers: (edits, L, L), source token by target token. own: (edits, L), 1 for target tokens that keep their own maps.
    alphas: (steps + 1, edits, L), of `word_steps`: where and when the result of the edit counts. self_steps: [first,
    last) step in which self-attention is the source's, in layers of at most max_self_pixels pixels. equalizers: (edits
    or 1, L), factors of the edited cross-attention (Section 3.2, attention re-weighting). weights: the same in all
    steps and of the result, as in bloc97/CrossAttentionControl. keep(place): whether the maps of a layer are added up
    in `sums`. step: set by who runs it. Maps are not normalised again, as in the published code.

    `edit` is the edit as the paper has it, on maps. Maps are made of layers that are kept, and of those with a mask.
    Elsewhere `attend` gives the same from the fused operator: an edit is a linear map of each row, M -> M A + M' b with
    the source's M, the target's own M' and diagonal b, so that A and b may be applied to the values.
    """

    def __init__(
        self,
        mappers: Tensor,
        own: Tensor,
        alphas: Tensor,
        self_steps: tuple[int, int],
        *,
        max_self_pixels: int = 16 * 16,
        equalizers: Tensor | None = None,
        weights: Tensor | None = None,
        keep: Callable[[Place], bool] = lambda place: False,
    ) -> None:
        self.mappers, self.own, self.alphas, self.self_steps = mappers, own, alphas, self_steps
        self.max_self_pixels, self.equalizers, self.weights, self.keep = max_self_pixels, equalizers, weights, keep
        self.prompts = 1 + len(mappers)
        self.sums: dict[str, Tensor] = {}
        self.sizes: set[tuple[int, ...]] = set()  # of cross-attention that was seen
        self.step = 0
        self._counts = alphas.flatten(1).any(1).tolist()  # whether the edit counts in a step
        self._share: tuple[object, Share] = (None, (None, None))  # of what, and `_shares` of it

    @property
    def steps(self) -> int:
        """How many steps it was made for."""
        return len(self.alphas) - 1

    @property
    def length(self) -> int:
        """Tokens of the context."""
        return self.alphas.shape[-1]

    def wants(self, place: Place) -> bool:
        """Layers whose maps are changed in this step, or kept."""
        if place.kind == "cross":
            self.sizes.add(place.size)
            return self._counts[self.step] or self.weights is not None or self.keep(place)
        return place.kind == "self" and (self._replaces(math.prod(place.size)) or self.keep(place))

    def edit(self, place: Place, maps: Tensor) -> Tensor:
        """maps: (B, heads, pixels, L or pixels), or with the unconditional half after them."""
        self._expect(place, len(maps), maps.shape[-1])
        conditional, rest = maps[: self.prompts], maps[self.prompts :]
        source, own = conditional[:1], conditional[1:]
        if place.kind == "cross":
            of_source, of_own = self._shares(maps)
            edited = torch.zeros_like(own) if of_source is None else source @ of_source
            if of_own is not None:
                edited = edited + own * of_own.transpose(2, 3)
        else:
            edited = source.expand_as(own) if self._replaces(maps.shape[2]) else own
        conditional = torch.cat([source, edited])
        if self.keep(place):
            self.sums[place.name] = self.sums.get(place.name, 0) + conditional
        return torch.cat([conditional, rest])

    def attend(self, place: Place, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The result of the edited maps, which are made only where they are kept."""
        if self.keep(place):
            return super().attend(place, q, k, v)
        self._expect(place, len(q), k.shape[2])
        if place.kind == "self":
            if self._replaces(q.shape[2]):
                q, k = self._of_source(q), self._of_source(k)
            return attention(q, k, v)
        of_source, of_own = self._shares(v)
        first, edits, rest = v[:1], v[1 : self.prompts], v[self.prompts :]
        if of_source is None:
            kept = torch.zeros_like(edits) if of_own is None else of_own * edits
            return attention(q, k, torch.cat([first, kept, rest]))
        out = attention(self._of_source(q), self._of_source(k), torch.cat([first, of_source @ edits, rest]))
        if of_own is None:
            return out
        more = attention(q[1 : self.prompts], k[1 : self.prompts], of_own * edits)
        return torch.cat([out[:1], out[1 : self.prompts] + more, out[self.prompts :]])

    def _expect(self, place: Place, rows: int, keys: int) -> None:
        expect(
            rows in (self.prompts, 2 * self.prompts),
            f"{self.prompts} prompts need a batch of as many, got {rows} rows of maps at {place.name}",
        )
        expect(
            place.kind != "cross" or keys == self.length,
            f"the edit is for contexts of {self.length} tokens, got {keys} at {place.name}",
        )

    def _of_source(self, rows: Tensor) -> Tensor:
        """With the source's row in place of the edits'."""
        return torch.cat([rows[:1].expand(self.prompts, *rows.shape[1:]), rows[self.prompts :]])

    def _replaces(self, pixels: int) -> bool:
        first, last = self.self_steps
        return first <= self.step < last and pixels <= self.max_self_pixels

    def _shares(self, like: Tensor) -> Share:
        """What the edited maps of this step have of the source's, (edits, 1, L, L), and of the target's own, (edits, 1,
        L, 1), in the dtype and on the device of `like`; None for nothing. Section 3.2: word swap, adding a new phrase,
        re-weighting."""
        key = (self.step, like.dtype, like.device)
        if self._share[0] != key:
            w = self.alphas[self.step]  # (edits, L)
            edited = w if self.equalizers is None else w * self.equalizers
            taken = self.own > 0
            of_source = self.mappers * edited.masked_fill(taken, 0)[:, None]
            of_own = edited.masked_fill(~taken, 0) + (1 - w)
            if self.weights is not None:
                of_source, of_own = of_source * self.weights[:, None], of_own * self.weights
            found = (of_source[:, None], of_own[:, None, :, None])
            self._share = key, tuple(each.to(like) if each.any() else None for each in found)  # type: ignore[assignment]
        return self._share[1]
