"""Launches of the kernels for channels-last maps, with what is added before the norm, or of two maps side by side.

Statistics of parts, and the result from them: two launches, three where parts are many. Or one, where groups stay in
registers. Partial results are added up in a fixed order, and no program instance waits for another. No GPU has run it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..launching import Launch
from .rows_kernels import rows_apply_kernel, rows_merge_kernel, rows_statistics_kernel, rows_whole_kernel
from .rows_plan import Rows

_MERGE_GROUPS = 8  # of a program instance that adds up parts


class Options(NamedTuple):
    """What launches do, beside the plan. split: channels of the first of two maps side by side, or 0; written: the sum
    that is normalized."""

    eps: float
    silu: bool
    affine: bool
    biased: bool
    scaled: bool
    shifted: bool
    split: int = 0
    conv_biased: bool = False
    channel_biased: bool = False
    residual: bool = False
    written: bool = False


class RowsForward:
    """The launches for maps of (samples, pixels, channels), dense."""

    def __init__(
        self, samples: int, pixels: int, channels: int, groups: int, device: torch.device, cut: Rows, options: Options
    ) -> None:  # fmt: skip
        width, given = channels // groups, options._asdict()
        common = dict(num_warps=cut.num_warps, enable_fp_fusion=True)
        added = {
            name: given[name] for name in ("split", "conv_biased", "channel_biased", "residual", "written")
        }  # fmt: skip
        norm = {name: given[name] for name in ("eps", "affine", "biased", "scaled", "shifted", "silu")}
        tile = dict(block_width=cut.block_width, block_pixels=cut.block_pixels)
        self._device, self._written = device, options.written
        self._whole: Launch | None = None
        self._merge: Launch | None = None
        if cut.whole:
            self._whole = Launch(
                rows_whole_kernel, (groups, samples), pixels=pixels, groups=groups, width=width, **added, **norm,
                **tile, **common,
            )  # fmt: skip
            return
        sizes: dict[str, Any] = dict(pixels=pixels, width=width, groups=groups)
        parts = dict(parts=cut.parts, part_pixels=cut.part_pixels)
        self._statistics = Launch(
            rows_statistics_kernel, (cut.parts, samples), part_pixels=cut.part_pixels, **sizes, **added, **tile,
            block_groups=cut.block_groups, **common,
        )  # fmt: skip
        self._partial, self._merged = (samples, cut.parts, 2, groups), (samples, 1, 2, groups)
        if cut.merged:
            self._merge = Launch(
                rows_merge_kernel, (triton.cdiv(groups, _MERGE_GROUPS), samples), **sizes, **parts,
                block_parts=triton.next_power_of_2(cut.parts), block_groups=_MERGE_GROUPS, num_warps=4,
                enable_fp_fusion=True,
            )  # fmt: skip
            parts = dict(parts=1, part_pixels=pixels)
        tiles, columns = cut.part_pixels // cut.apply_pixels, triton.cdiv(channels, cut.apply_channels)
        if cut.backwards:
            grid = columns, cut.parts * tiles, samples
        else:
            grid = triton.cdiv(pixels, cut.apply_pixels), columns, samples
        self._apply = Launch(
            rows_apply_kernel, grid, channels=channels, **sizes, **parts, split=options.split, **norm,
            runs=cut.parts, tiles=tiles, backwards=cut.backwards,
            block_parts=triton.next_power_of_2(parts["parts"]), touched_groups=cut.touched_groups,
            block_channels=cut.apply_channels, block_pixels=cut.apply_pixels, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip

    def __call__(
        self, out: Tensor, h: Tensor | None, x: Tensor, other: Tensor | None, conv_bias: Tensor | None,
        channel_bias: Tensor | None, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None,
        shift: Tensor | None,
    ) -> None:  # fmt: skip
        """Write the result to `out`, and the sum to h if it is `written`. Vectors are contiguous."""
        other, conv_bias, channel_bias, weight, bias, scale, shift = (
            x if t is None else t for t in (other, conv_bias, channel_bias, weight, bias, scale, shift)
        )
        h = out if h is None else h
        if self._whole is not None:
            self._whole(x, other, conv_bias, channel_bias, weight, bias, scale, shift, out, h)
            return
        partial = torch.empty(self._partial, dtype=torch.float32, device=self._device)
        self._statistics(x, other, conv_bias, channel_bias, partial, h)
        if self._merge is not None:
            merged = torch.empty(self._merged, dtype=torch.float32, device=self._device)
            self._merge(partial, merged)
            partial = merged
        # What was written is what is normalized.
        self._apply(h if self._written else x, other, weight, bias, scale, shift, partial, out)
