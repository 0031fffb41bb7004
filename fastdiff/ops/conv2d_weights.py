"""What is kept of a convolution's weights: made once, and again when they change."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.runtime import choice, contents, graphs
from fastdiff.runtime.cuda_graph import Made
from fastdiff.runtime.memory import empty
from fastdiff.runtime.native import core

_NAME, _SUMMED = "conv2d", "conv2d by phases"
_NOT_KEPT = "the weight is an inference tensor, whose changes cannot be seen: its sums are made in each call"


class Packed:
    """The forms of one weight (K, C, 3, 3), made when they are first asked for, and for one instruction set."""

    def __init__(self) -> None:
        self.isa = core.isa()
        self._forms: dict[str, Tensor] = {}
        self._copy: tuple[Tensor, tuple[int, int, int, int]] | None = None
        self._in_range: bool | None = None

    def get(self, weight: Tensor, algorithm: str) -> Tensor:
        """What an algorithm reads."""
        found = self._forms.get(algorithm)
        if found is None:
            filters = _filters(weight)
            found = filters if algorithm == "winograd-on-the-fly" else _transformed(filters)
            self._forms[algorithm] = found
        return found

    def filters(self, weight: Tensor) -> tuple[int, int, int, int]:
        """The weight itself, as `_as_it_is` says."""
        if self._copy is not None:
            return self._copy[1]
        found, read = _as_it_is(weight.detach())
        if found.data_ptr() != weight.data_ptr():
            self._copy = found, read
        return read

    def in_range(self, weight: Tensor) -> bool:
        """Whether no transform or product of the weight overflows, or loses bits: of each output channel the largest
        number is 0 or within 2^-50 and 2^50."""
        if self._in_range is None:
            low, high = weight.detach().flatten(1).aminmax(dim=1) if weight.numel() else weight.new_zeros(2, 1)
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


def packed(weight: Tensor) -> Packed:
    """What is kept of this weight, as it is now."""
    if not contents.watchable(weight):
        return Packed()
    kept = contents.of(weight).derived
    found = kept.get(_NAME)
    if found is None or found.isa != core.isa():
        found = kept[_NAME] = Packed()
    return found


def summed(weight: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """make(weight), the sums of a weight on a GPU by which an upsampled image is convolved, kept with the weight.

    A graph of one call reads what is kept. A graph of a loop makes the sums itself, once a replay. A graph of somebody
    else, who would not know when they are not good any more, makes them for each use.
    """
    if not contents.watchable(weight):
        choice.note(_NAME, _NOT_KEPT)
        return make(weight)
    if (inside := contents.made_inside()) is not None:
        if id(weight) not in inside:
            inside[id(weight)] = weight, make(weight)
        return inside[id(weight)][1]
    if not contents.may_read():
        return make(weight)
    kept = contents.of(weight).derived
    found: tuple[Tensor, Made | None] | None = kept.get(_SUMMED)
    if graphs.capturing():  # it began after all that was queued before had ended
        return make(weight) if found is None else found[0]
    if found is None:
        found = kept[_SUMMED] = make(weight.detach()), Made.on(weight.device)
    sums, made = found
    if made is not None:
        made.hand_over((sums,))
    return sums


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
