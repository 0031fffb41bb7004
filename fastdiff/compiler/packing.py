"""Weights that the operators keep in a layout of their own, and changes of them that PyTorch does not count.

The operators key what they keep on a weight's identity and version. Writing through `.data`, as peft and diffusers do
when they merge a LoRA, leaves the version as it was. So a graph compares a few of a weight's elements with what they
were at the call before, and where they differ counts the version up itself."""

from __future__ import annotations

import torch
from torch import Tensor

_ELEMENTS = 64  # a merge changes nearly all of a weight's elements


class Watch:
    """Watches one weight: call it with the weight before every use."""

    def __init__(self) -> None:
        self._seen: tuple[int, int, int] | None = None
        self._view = self._copy = torch.empty(0, dtype=torch.float32, device="cpu")

    def __call__(self, weight: Tensor) -> None:
        if weight.is_inference():
            return  # it has no version, and the operators keep nothing of it
        state = (id(weight), weight.data_ptr(), weight._version)
        if state == self._seen:
            if torch.equal(self._view, self._copy):
                return
            weight.detach()[:0].zero_()  # changes nothing but the version, which views share
        with torch.no_grad():
            flat = weight.detach().reshape(-1) if weight.is_contiguous() else weight.detach()[:, :1].flatten()
            self._view = flat[:: max(1, flat.numel() // _ELEMENTS)]
            self._copy = self._view.clone()
        self._seen = (id(weight), weight.data_ptr(), weight._version)
