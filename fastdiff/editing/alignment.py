"""Which tokens of two prompts belong together, for any tokenizer (Hertz et al. 2022, Prompt-to-Prompt, Section 3.2)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff import arguments
from fastdiff.errors import expect, unknown
from fastdiff.models.text import PADDING, Tokenizer, words_of

Bounds = float | Sequence[float]


@dataclass(frozen=True)
class Tokens:
    """A prompt as its encoder sees it. words: of the prompt. ids: of its tokens, with those of start and end, without
    padding. pieces: the text of each token, "" for start and end."""

    words: tuple[str, ...]
    ids: tuple[int, ...]
    pieces: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The words, for messages."""
        return " ".join(self.words)

    def positions(self) -> list[list[int]]:
        """The places of each word's tokens: the pieces are read until their lengths add up to the word's. Raises
        ValueError where they do not, as for a prompt that was cut."""
        found: list[list[int]] = []
        places = iter([k for k, piece in enumerate(self.pieces) if piece])
        for word in self.words:
            mine, left = [], len(word)
            while left > 0 and (place := next(places, None)) is not None:
                mine.append(place)
                left -= len(self.pieces[place])
            expect(left == 0, f"the tokens {list(self.pieces)} cannot be aligned with the words of {self.prompt!r}")
            found.append(mine)
        return found

    def of(self, word: str) -> list[int]:
        """The places of all tokens of a word, which may be there several times; empty where it is not."""
        return [place for each, places in zip(self.words, self.positions()) if each == word for place in places]


def tokens_of(tokenizer: Any, prompt: str) -> Tokens:
    """A prompt's Tokens. tokenizer: a fastdiff one (`model.info.tokenizer`), or one of transformers'."""
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt must be a string, got {arguments.described(prompt)}")
    if isinstance(tokenizer, Tokenizer):
        words = tuple(words_of(prompt))
        return Tokens(words, tuple(t for t in tokenizer.tokens(prompt) if t != PADDING), words)
    if not callable(tokenizer) or not hasattr(tokenizer, "decode") or not hasattr(tokenizer, "all_special_ids"):
        raise TypeError(
            "tokenizer must be fastdiff's or one of transformers', got "
            f"{arguments.described(tokenizer)}; fastdiff.editing.Tokens takes the tokens of others"
        )
    ids, special = tokenizer(prompt)["input_ids"], set(tokenizer.all_special_ids)
    text = ["" if i in special else tokenizer.decode([i]).strip().removeprefix("##") for i in ids]
    return Tokens(tuple(prompt.split()), tuple(map(int, ids)), tuple(text))


def replace_mapper(source: Tokens, target: Tokens, length: int, *, tail: str = "aligned") -> Tensor:
    """(length, length), source token by target token: what the target's maps are of the source's where words are
    swapped. A swapped word's tokens are mapped one to one where both words have the same number, else each source token
    by 1 / (number of target tokens) to all of them.

    length: tokens of the context, with padding. tail: of what follows the last swapped word: "aligned": each token has
    its own map; "diagonal": that of the same place, as in the published code, which is another token's where the
    numbers of tokens differ. Raises ValueError for prompts with different numbers of words.
    """
    _expect_room(length, source, target)
    expect(tail in ("aligned", "diagonal"), f"tail must be 'aligned' or 'diagonal', got {tail!r}")
    expect(
        len(source.words) == len(target.words),
        f"words can be swapped in prompts with as many words, got {source.prompt!r} and {target.prompt!r}; "
        "take edit='refine'",
    )
    mapper, i, j = torch.zeros(length, length, dtype=torch.float64, device="cpu"), 0, 0
    for a, b, old, new in zip(source.positions(), target.positions(), source.words, target.words):
        if old == new:
            continue
        expect(a[0] - i == b[0] - j, f"the tokens of {source.prompt!r} and {target.prompt!r} cannot be aligned")
        for k in range(a[0] - i):
            mapper[i + k, j + k] = 1
        if len(a) == len(b):
            mapper[a, b] = 1
        else:
            for place in b:
                mapper[a, place] = 1 / len(b)
        i, j = a[-1] + 1, b[-1] + 1
    for k in range(length - j):
        if i + k < length:
            mapper[i + k if tail == "aligned" else j + k, j + k] = 1
        elif tail == "aligned":  # padding beyond the source's; the published code leaves it out
            mapper[-1, j + k] = 1
    return mapper


def refine_mapper(source: Tokens, target: Tokens, length: int) -> Tensor:
    """(length,) int64: for each target token the source's, -1 for one that is new; padding is its own.

    The tokens are aligned globally (Needleman & Wunsch 1970): 1 for a match, -1 for a mismatch, 0 for a gap. In a tie
    the target's token is the unmatched one, else the source's.
    """
    _expect_room(length, source, target)
    x, y = source.ids, target.ids
    score = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            matched = score[i - 1][j - 1] + (1 if x[i - 1] == y[j - 1] else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], matched)
    mapper = torch.arange(length, dtype=torch.int64, device="cpu")
    i, j = len(x), len(y)
    while j > 0:
        if i == 0 or score[i][j] == score[i][j - 1]:
            j -= 1
            mapper[j] = -1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            mapper[j] = i
    return mapper


def matching_tokens(source: Sequence[int], target: Sequence[int]) -> Tensor:
    """(length,) int64: for each target token the source's by difflib's blocks, equal ones and those replaced by as
    many; -1 elsewhere (bloc97/CrossAttentionControl). source, target: ids with padding, of one length."""
    mapper = torch.full((len(target),), -1, dtype=torch.int64, device="cpu")
    for kind, a, b, c, d in difflib.SequenceMatcher(None, list(source), list(target)).get_opcodes():
        if kind == "equal" or (kind == "replace" and b - a == d - c):
            mapper[c:d] = torch.arange(a, b, dtype=torch.int64, device="cpu")
    return mapper


def word_steps(bounds: Bounds | Mapping[str, Bounds], targets: Sequence[Tokens], steps: int, length: int) -> Tensor:
    """(steps + 1, targets, length): 1 where and when a target token takes the source's map.

    bounds: b or (a, b): from the share a of the steps, 0 if there is none, to b; or a mapping from words of the targets
    to bounds, and "default_" for all other tokens ([0, 1] if missing). Raises ValueError for a word that no target has.
    """
    alphas = torch.zeros(steps + 1, len(targets), length, dtype=torch.float64, device="cpu")
    by_word = dict(bounds) if isinstance(bounds, Mapping) else {"default_": bounds}
    _set(alphas, pair_of(by_word.pop("default_", 1.0)), slice(None), slice(None))
    for word, each in by_word.items():
        places = places_of(word, targets)
        for k, tokens in enumerate(places):
            _set(alphas, pair_of(each), k, tokens)
    return alphas


def equalizer(target: Tokens, weights: Mapping[str, float], length: int) -> Tensor:
    """(length,): 1, and the weight at the tokens of each word. Raises ValueError for a word that is not there."""
    found = torch.ones(length, dtype=torch.float64, device="cpu")
    for word, weight in weights.items():
        found[places_of(word, [target])[0]] = arguments.number(f"weight of {word!r}", weight)
    return found


def places_of(word: str, targets: Sequence[Tokens]) -> list[list[int]]:
    """The places of a word's tokens in each prompt. Raises ValueError where no prompt has it."""
    found = [target.of(word) for target in targets]
    if not any(found):
        raise unknown("word", word, {each for target in targets for each in target.words})
    return found


def pair_of(bounds: Bounds) -> tuple[float, float]:
    """(a, b) from b or (a, b). Raises ValueError unless 0 <= a <= b <= 1."""
    low, high = (0.0, bounds) if not isinstance(bounds, Sequence) else tuple(bounds)
    low, high = arguments.number("bound", low), arguments.number("bound", high)
    expect(0 <= low <= high <= 1, f"bounds must be (a, b) with 0 <= a <= b <= 1, got {(low, high)}")
    return low, high


def _set(alphas: Tensor, bounds: tuple[float, float], edit: Any, tokens: Any) -> None:
    first, last = (int(bound * len(alphas)) for bound in bounds)
    alphas[:, edit, tokens] = 0
    alphas[first:last, edit, tokens] = 1


def _expect_room(length: int, *prompts: Tokens) -> None:
    for tokens in prompts:
        expect(
            len(tokens.ids) <= length,
            f"{tokens.prompt!r} has {len(tokens.ids)} tokens, and the model's context {length}",
        )
