"""Launches of the kernels for contiguous maps in which a group is one run of numbers. No GPU has run them."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..launching import Launch
from .flat_kernels import (
    group_norm_silu_flat_apply_kernel,
    group_norm_silu_flat_kernel,
    group_norm_silu_flat_statistics_kernel,
)
from .flat_plan import Flat
from .rows import Options


class FlatForward:
    """The launches for maps of (samples, channels, pixels), contiguous."""

    def __init__(
        self, samples: int, pixels: int, channels: int, groups: int, device: torch.device, cut: Flat, options: Options
    ) -> None:  # fmt: skip
        given, pairs, width = options._asdict(), samples * groups, channels // groups
        norm = {name: given[name] for name in ("eps", "affine", "biased", "scaled", "shifted", "silu")}
        run = dict(size=width * pixels, block=cut.block, num_warps=cut.num_warps, enable_fp_fusion=True)
        group = dict(groups=groups, channels=channels, pixels=pixels, width=width, even=cut.even)
        self._device, self._partial = device, (pairs, cut.parts, 2)
        self._alone: Launch | None = None
        self._parts: list[tuple[Launch, Launch]] = []
        if cut.alone:
            self._alone = Launch(group_norm_silu_flat_kernel, (pairs,), **run, **group, **norm)
            return
        for first in range(0, pairs, cut.pairs):
            part = dict(first_pair=first, tiles=cut.tiles, **run)
            grid = min(cut.pairs, pairs - first), cut.parts
            statistics = Launch(group_norm_silu_flat_statistics_kernel, grid, **part)
            apply = Launch(
                group_norm_silu_flat_apply_kernel, grid, **part, **group, **norm, parts=cut.parts,
                parts_block=triton.next_power_of_2(cut.parts),
            )  # fmt: skip
            self._parts.append((statistics, apply))

    def __call__(
        self, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
    ) -> None:  # fmt: skip
        """Write the result to `out`. Vectors are contiguous."""
        if self._alone is not None:
            self._alone(x, weight, bias, scale, shift, out)
            return
        partial = torch.empty(self._partial, dtype=torch.float32, device=self._device)
        for statistics, apply in self._parts:
            statistics(x, partial)
            apply(x, weight, bias, scale, shift, partial, out)
