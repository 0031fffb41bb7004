"""The toy tokenizer of the prompt families: pieces of at most four characters, between a start and an end token."""

from fastdiff.editing.alignment import Tokens


def padded(case):
    """The ids of each prompt, as long as the context."""
    return [[int(i) for i in row] for row in case["token_ids"]]


def prompts_of(case):
    found = []
    for prompt, row in zip(case.prompts, padded(case)):
        ids = row[: row.index(1) + 1]  # the end token also pads, where that is the case's padding
        pieces = ["" if i in (0, 1) else case.pieces[str(i)] for i in ids]
        found.append(Tokens(tuple(prompt.split(" ")), tuple(ids), tuple(pieces)))
    return found


def weights_of(case, tokens):
    """The equalizer's words that a prompt has, as the original passes over the others."""
    given = dict(zip(case.equalizer_words, case.equalizer_values))
    return {word: value for word, value in given.items() if word in tokens.words}


def bounds_of(case, targets):
    """cross_replace_steps without words that no prompt has, which the original passes over."""
    given = case.cross_replace_steps
    if not isinstance(given, dict):
        return given
    known = {"default_"} | {word for tokens in targets for word in tokens.words}
    return {word: bound for word, bound in given.items() if word in known}
