"""What is kept of a convolution's weights: made once, and again when they change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fastdiff.runtime.memory import empty
from fastdiff.runtime.native import core


class Packed:
    """The forms of one weight (K, C, 3, 3), made when they are first asked for."""

    def __init__(self) -> None:
        self._of: tuple[Any, ...] | None = None
        self._forms: dict[str, Tensor] = {}
        self._as_it_is: tuple[Tensor, tuple[int, int, int, int]] | None = None
        self._in_range: bool | None = None
        self.made = 0

    def update(self, weight: Tensor) -> None:
        """Forget all forms if the weight has changed since, or the instruction set."""
        of = (weight._version, weight.data_ptr(), tuple(weight.shape), weight.stride(), core.isa())
        if of != self._of:
            self._forms.clear()
            self._as_it_is = self._in_range = None
            self._of, self._weight = of, weight.detach()

    def get(self, algorithm: str) -> Tensor:
        """What an algorithm reads."""
        found = self._forms.get(algorithm)
        if found is None:
            filters = _filters(self._weight)
            found = filters if algorithm == "winograd-on-the-fly" else _transformed(filters)
            self._forms[algorithm] = found
            self.made += 1
        return found

    @property
    def filters(self) -> tuple[int, int, int, int]:
        """The weight itself, as `_as_it_is` says."""
        if self._as_it_is is None:
            self._as_it_is = _as_it_is(self._weight)
        return self._as_it_is[1]

    @property
    def in_range(self) -> bool:
        """Whether no transform or product of the weight overflows, or loses bits: of each output channel the largest
        number is 0 or within 2^-50 and 2^50."""
        if self._in_range is None:
            low, high = self._weight.flatten(1).aminmax(dim=1) if self._weight.numel() else self._weight.new_zeros(2, 1)
            largest = torch.maximum(high, -low)
            ordinary = (largest >= 2.0**-50) & (largest <= 2.0**50)
            self._in_range = bool((ordinary | (largest == 0)).all())
        return self._in_range

    def keep_only(self, algorithm: str) -> None:
        """Forget what the other algorithms read."""
        self._forms = {name: form for name, form in self._forms.items() if name == algorithm}

    def nbytes(self) -> dict[str, int]:
        """Of each form that there is."""
        return {name: form.nbytes for name, form in self._forms.items()}


_all = WeakTensorKeyDictionary()


def packed(weight: Tensor) -> Packed:
    """What is kept of this weight, up to date."""
    if weight.is_inference():  # whose changes cannot be seen
        found = Packed()
        found._of, found._weight = (), weight
        return found
    kept = _all.get(weight)
    if kept is None:
        kept = _all[weight] = Packed()
    kept.update(weight)
    return kept


def _filters(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) as [panels][channels][9][panel], with zeros where either dimension is padded."""
    out_channels, channels = weight.shape[:2]
    panel, block = core.conv2d_panel(), core.CONV2D_CHANNEL_BLOCK
    panels, padded = -(-out_channels // panel), -(-channels // block) * block
    filters = empty((panels, padded, 9, panel), dtype=torch.float32)
    if panels * panel != out_channels or padded != channels:
        filters.zero_()
    whole = out_channels // panel * panel
    flat = weight.detach().reshape(out_channels, channels, 9)
    filters[: whole // panel, :channels].copy_(flat[:whole].reshape(-1, panel, channels, 9).permute(0, 2, 3, 1))
    if whole < out_channels:
        filters[-1, :channels, :, : out_channels - whole].copy_(flat[whole:].permute(1, 2, 0))
    return filters


def _transformed(filters: Tensor) -> Tensor:
    """[points][panels][channels][panel]."""
    panels, channels, _, panel = filters.shape
    made = empty((36 * panels * channels * panel,), dtype=torch.float32)
    core.conv2d_weights(filters.data_ptr(), channels, panels, made.data_ptr(), torch.get_num_threads())
    return made


def _as_it_is(weight: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """A weight (K, C, 3, 3) for kernels that read it where it is: the weight, a copy where its strides are unusual, and
    (address, strides of an output channel, an input channel and a tap)."""
    out, into, down, tap = weight.stride()
    if down != 3 * tap or not ((tap == 1 and into == 9) or into == 1):
        weight = weight.contiguous()
        out, into, down, tap = weight.stride()
    return weight, (weight.data_ptr(), out, into, tap)
