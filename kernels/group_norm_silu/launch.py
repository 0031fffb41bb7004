"""group_norm_silu in Triton, by the kernels of rows_kernels.py for channels-last maps, flat_kernels.py for contiguous
ones, or of forward.py for all."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from fastdiff.runtime.device import properties

from ..launching import Launch
from .flat import FlatForward
from .flat_plan import Flat, flat_plans
from .forward import group_norm_silu_apply_kernel, group_norm_silu_statistics_kernel, group_norm_silu_whole_kernel
from .plan import Plan, alternatives, plan
from .rows import Options, RowsForward
from .rows_plan import Rows, other_rows, rows_plan


class Forward:
    """The launches for tensors like these. Arguments as of group_norm_silu, which describes them."""

    def __init__(
        self, x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
        *, scale: Tensor | None = None, shift: Tensor | None = None, activation: str | None = "silu",
        skip: Tensor | None = None, cut: Plan | Rows | Flat | None = None,
    ) -> None:  # fmt: skip
        read, second, last = in_place(x, skip)
        self._as_it_is = read is x and second is skip
        samples, channels, pixels = sizes(read, second)
        device = read.device
        if read.numel():
            cut = cut or _chosen(read, second, num_groups, last)
        self._joined = second is not None and not isinstance(cut, Rows)
        if self._joined:
            assert second is not None
            read, second = torch.cat((read, second), 1), None
        form = torch.channels_last if last else torch.contiguous_format
        shape = (samples, channels, *read.shape[2:])
        out = torch.empty(shape, dtype=x.dtype, device="meta").contiguous(memory_format=form)
        self._shape, self._strides, self._dtype, self._device = out.shape, out.stride(), x.dtype, device
        self._flat = (samples, channels)
        self._parts: list[tuple[Launch, Launch]] = []
        self._whole: Launch | None = None
        self._rows: RowsForward | None = None
        self._runs: FlatForward | None = None
        if cut is None or not read.numel():
            return
        if isinstance(cut, (Rows, Flat)):
            assert last == isinstance(cut, Rows), "rows are of channels-last maps, runs of contiguous ones"
            options = Options(
                float(eps), activation == "silu", weight is not None, bias is not None, scale is not None,
                shift is not None, split=0 if second is None else read.shape[1],
            )  # fmt: skip
            of_map = samples, pixels, channels, num_groups, device
            if isinstance(cut, Rows):
                self._rows = RowsForward(*of_map, cut, options)
            else:
                self._runs = FlatForward(*of_map, cut, options)
            return
        place, rest = arguments(read, num_groups, weight, bias, float(eps), scale, shift, activation)
        rest = {name: value for name, value in rest.items() if not isinstance(value, Tensor)}
        pairs = samples * num_groups
        if cut.whole:
            self._whole = Launch(
                group_norm_silu_whole_kernel, (pairs,), **place, **rest, **cut.options, more_channels=cut.more_channels
            )
            return
        self._partial = (pairs, cut.parts, 2), (cut.parts * 2, 2, 1)
        for first, count in cut.launches(pairs):
            part = dict(first_pair=first, part_pixels=cut.part_pixels, **place, **cut.options)
            statistics = Launch(group_norm_silu_statistics_kernel, (count, cut.parts), **part)
            apply = Launch(
                group_norm_silu_apply_kernel, (count, cut.parts), **part, **rest, parts=cut.parts,
                parts_block=triton.next_power_of_2(cut.parts),
            )  # fmt: skip
            self._parts.append((statistics, apply))

    def __call__(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None,
        skip: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The result."""
        out = torch.empty_strided(self._shape, self._strides, dtype=self._dtype, device=self._device)
        if not self._as_it_is:
            x, skip, _ = in_place(x, skip)
        if self._joined:
            assert skip is not None
            x, skip = torch.cat((x, skip), 1), None
        weight = x if weight is None else weight.contiguous()
        bias = x if bias is None else bias.contiguous()
        scale = x if scale is None else scale.reshape(self._flat).contiguous()
        shift = x if shift is None else shift.reshape(self._flat).contiguous()
        if self._rows is not None:
            self._rows(out, None, x, skip, None, None, weight, bias, scale, shift)
        elif self._runs is not None:
            self._runs(out, x, weight, bias, scale, shift)
        elif self._whole is not None:
            self._whole(x, weight, bias, scale, shift, out)
        elif self._parts:
            partial = torch.empty_strided(*self._partial, dtype=torch.float32, device=self._device)
            for statistics, apply in self._parts:
                statistics(x, partial)
                apply(x, weight, bias, scale, shift, partial, out)
        return out


def group_norm_silu(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *,
    scale: Tensor | None = None, shift: Tensor | None = None, activation: str | None = "silu",
    skip: Tensor | None = None, cut: Plan | Rows | Flat | None = None,
) -> Tensor:  # fmt: skip
    """As fastdiff.ops.group_norm_silu, for tensors that Triton can reach, contiguous or channels-last.

    cut: into parts; chosen by shape and device by default.
    """
    vectors = dict(scale=scale, shift=shift)
    forward = Forward(x, num_groups, weight, bias, eps, **vectors, activation=activation, skip=skip, cut=cut)  # type: ignore[arg-type]
    return forward(x, weight, bias, scale, shift, skip)


def arguments(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, scale: Tensor | None,
    shift: Tensor | None, activation: str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Of all kernels, by their names: where the numbers of x are, and what is done to them after normalization."""
    samples, channels = x.shape[:2]
    pixels = x.numel() // (samples * channels)
    steps = (pixels, 1) if x.is_contiguous() else (1, channels)
    place = dict(
        groups=num_groups, channels=channels, pixels=pixels, width=channels // num_groups,
        channel_stride=steps[0], pixel_stride=steps[1],
    )  # fmt: skip
    scale, shift = (t if t is None else t.reshape(samples, channels) for t in (scale, shift))
    vectors = dict(weight=weight, bias=bias, scale=scale, shift=shift)
    rest = dict(
        **{name: x if t is None else t.contiguous() for name, t in vectors.items()}, eps=eps,
        affine=weight is not None, biased=bias is not None, scaled=scale is not None, shifted=shift is not None,
        silu=activation == "silu",
    )  # fmt: skip
    return place, rest


def in_layout(x: Tensor) -> tuple[Tensor, bool]:
    """x as it is where it is channels-last, otherwise contiguous; whether it is channels-last."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return (x if last else x.contiguous()), last


def in_place(x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
    """x and what is beside it where both are channels-last, otherwise both in one; and whether they are."""
    if skip is None:
        x, last = in_layout(x)
        return x, None, last
    first, second = in_layout(x), in_layout(skip)
    if first[1] and second[1]:
        return x, skip, True
    return torch.cat((first[0], second[0]), 1).contiguous(), None, False


def sizes(x: Tensor, skip: Tensor | None) -> tuple[int, int, int]:
    """Samples, channels and pixels of x, or of x and what is beside it."""
    samples, channels = x.shape[0], x.shape[1] + (0 if skip is None else skip.shape[1])
    return samples, channels, x.shape[2:].numel()


def other_plans(x: Tensor, num_groups: int, skip: Tensor | None = None) -> list[Plan | Rows | Flat]:
    """Plans that may be quicker than the one that is chosen, to be timed."""
    if not x.numel():
        return []
    x, skip, last = in_place(x, skip)
    chosen = _chosen(x, skip, num_groups, last)
    if isinstance(chosen, Rows):
        samples, channels, pixels = sizes(x, skip)
        rows = other_rows(chosen, samples, num_groups, channels // num_groups, pixels, properties(x.device))
        return [*rows, *([plan_for(x, num_groups, last)] if skip is None else [])]
    if chosen.whole:
        return [*alternatives(chosen, plan_for(x, num_groups, last, whole=False))]
    return [*alternatives(chosen, None), *([] if last else _flat_plans(x, num_groups))]


def _flat_plans(x: Tensor, num_groups: int) -> list[Flat]:
    """For a contiguous map."""
    samples, channels, pixels = sizes(x, None)
    return flat_plans(
        samples, num_groups, channels // num_groups, pixels, x.element_size(), device=properties(x.device)
    )


def _chosen(x: Tensor, skip: Tensor | None, num_groups: int, channels_last: bool) -> Plan | Rows:
    """The plan of a map, or of two beside each other, on its device."""
    samples, channels, pixels = sizes(x, skip)
    if channels_last:
        rows = rows_plan(samples, num_groups, channels // num_groups, pixels, device=properties(x.device))
        if rows is not None:
            return rows
    joined = x if skip is None else x.new_empty((samples, channels, *x.shape[2:]), device="meta")
    return plan_for(joined, num_groups, channels_last, device=properties(x.device))


def plan_for(x: Tensor, num_groups: int, channels_last: bool, *, device: Any = None, **options: Any) -> Plan:
    """The plan of x for the kernels of all layouts; options: as those of `plan`. device: x's by default."""
    samples, channels, pixels = sizes(x, None)
    return plan(
        samples, num_groups, channels // num_groups, pixels, x.element_size(), channels_last=channels_last,
        device=device or properties(x.device), **options,
    )  # fmt: skip
