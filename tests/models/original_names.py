"""State dicts as the originals name them, from the layouts' own lists of names."""

import torch

from fastdiff.models.checkpoints.layout import LAYOUTS
from fastdiff.models.checkpoints.loading import build, complete


def state_dict(layout, config, prefix=""):
    """Tensors with the original names, empty: what is derived of several has its rows in equal parts."""
    full = complete(layout, config)
    state = {}
    for name, value in build(layout, full).state_dict().items():
        where = layout.original(name, full)
        keys = (where,) if isinstance(where, str) else where.keys
        for key in keys:
            rows = [value.shape[0] // len(keys)] if value.ndim else []
            state[prefix + key] = torch.empty([*rows, *value.shape[1:]])
    return state


def layout_of(words):
    """The one layout that is described so."""
    (found,) = (known for known in LAYOUTS if words in known.about)
    return found
