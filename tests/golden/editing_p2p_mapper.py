"""google/prompt-to-prompt, seq_aligner.py and ptp_utils.py."""

import torch
from prompts import bounds_of, prompts_of, weights_of

from fastdiff.editing.alignment import equalizer, refine_mapper, replace_mapper, word_steps


def run(case):
    source, *targets = prompts_of(case)
    length = case.max_words
    assert [tokens.positions() for tokens in (source, *targets)] == case.word_indices
    refine = torch.stack([refine_mapper(source, target, length) for target in targets])
    found = {
        "refine_mapper": refine,
        "refine_alphas": (refine != -1).double(),
        "cross_replace_alpha": word_steps(bounds_of(case, targets), targets, case.num_steps, length),
    }
    if "replace_mapper" in case:
        mappers = [replace_mapper(source, target, length, tail="diagonal") for target in targets]
        found["replace_mapper"] = torch.stack(mappers)
    if case.equalizer_words is not None:
        found["equalizer"] = equalizer(targets[0], weights_of(case, targets[0]), length)[None]
    return found
