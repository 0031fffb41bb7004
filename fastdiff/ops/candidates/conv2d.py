"""Of convolutions: cuDNN in the layout that x has, and channels-last, which its tensor-core kernels want."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.candidates.shared import Found, default
from fastdiff.runtime.candidates import Candidate


def find(op: Any, a: Any) -> Found:
    """Channels-last is a candidate where x is not, and it is of a half type."""
    found = default(op, a).candidates
    if a.x.element_size() == 2 and not a.x.is_contiguous(memory_format=torch.channels_last):
        found.append(Candidate("torch channels-last", lambda a: op._plainly(_channels_last(a), True)))
    return Found(found)


def _channels_last(a: Any) -> Any:
    def last(image: Tensor | None) -> Tensor | None:
        return None if image is None else image.contiguous(memory_format=torch.channels_last)

    return a._replace(x=last(a.x), skip=last(a.skip), weight=last(a.weight), residual=last(a.residual))
