"""add_group_norm_silu in Triton, for channels-last maps: the kernels of group_norm_silu/rows_kernels.py, which add
while they read and write the sum once. No GPU has run it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.runtime.device import properties

from ..group_norm_silu.rows import Options, RowsForward
from ..group_norm_silu.rows_plan import Rows, other_rows, rows_plan


class Forward:
    """The launches for tensors like these. Arguments as of add_group_norm_silu, which describes them."""

    def __init__(
        self, x: Tensor, num_groups: int, conv_bias: Tensor | None = None, channel_bias: Tensor | None = None,
        residual: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *,
        scale: Tensor | None = None, shift: Tensor | None = None, activation: str | None = "silu",
        cut: Rows | None = None,
    ) -> None:  # fmt: skip
        self._rows: RowsForward | None = None
        if not x.numel():
            return
        samples, channels = x.shape[:2]
        pixels = x.shape[2:].numel()
        cut = cut or plan_for(x, num_groups)
        assert cut is not None, "the kernels have no plan for so many groups and channels"
        options = Options(
            float(eps), activation == "silu", weight is not None, bias is not None, scale is not None,
            shift is not None, conv_biased=conv_bias is not None, channel_biased=channel_bias is not None,
            residual=residual is not None, written=True,
        )  # fmt: skip
        self._rows = RowsForward(samples, pixels, channels, num_groups, x.device, cut, options)

    def __call__(
        self, x: Tensor, conv_bias: Tensor | None, channel_bias: Tensor | None, residual: Tensor | None,
        weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The sum, and what is made of it."""
        # Not as x's strides are, which say nothing where there is one sample.
        h, out = (
            torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last) for _ in range(2)
        )
        if self._rows is not None:
            flat = x.shape[:2]
            channel_bias, scale, shift = (
                None if t is None else t.reshape(flat).contiguous() for t in (channel_bias, scale, shift)
            )
            conv_bias, weight, bias = (None if t is None else t.contiguous() for t in (conv_bias, weight, bias))
            residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
            self._rows(out, h, x, residual, conv_bias, channel_bias, weight, bias, scale, shift)
        return h, out


def add_group_norm_silu(
    x: Tensor, num_groups: int, conv_bias: Tensor | None = None, channel_bias: Tensor | None = None,
    residual: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *,
    scale: Tensor | None = None, shift: Tensor | None = None, activation: str | None = "silu",
    cut: Rows | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As fastdiff.ops.add_group_norm_silu, for maps that Triton can reach, channels-last. cut: chosen by default."""
    vectors = dict(weight=weight, bias=bias, scale=scale, shift=shift)
    before = conv_bias, channel_bias, residual
    forward = Forward(x, num_groups, *before, eps=eps, activation=activation, cut=cut, **vectors)  # type: ignore[arg-type]
    return forward(x, *before, **vectors)


def plan_for(x: Tensor, num_groups: int) -> Rows | None:
    """The plan of a channels-last map on its device, or None if there is none."""
    samples, channels = x.shape[:2]
    return rows_plan(samples, num_groups, channels // num_groups, x.shape[2:].numel(), device=properties(x.device))


def other_plans(x: Tensor, num_groups: int) -> list[Rows]:
    """Plans that may be quicker than plan_for's, to be timed."""
    best = plan_for(x, num_groups) if x.numel() else None
    if best is None:
        return []
    samples, channels = x.shape[:2]
    pixels = x.shape[2:].numel()
    return other_rows(best, samples, num_groups, channels // num_groups, pixels, properties(x.device))
