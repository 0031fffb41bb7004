"""The compilations of the norms' kernels that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import triton

from fastdiff.kernels import ada_layer_norm, ada_layer_norm_backward, group_norm_silu, group_norm_silu_backward
from fastdiff.kernels.ahead_of_time import Variant
from fastdiff.kernels.group_norm_plan import Plan

ADA_LAYER_NORM = {
    "forward": ada_layer_norm.ada_layer_norm_kernel,
    "backward": ada_layer_norm_backward.ada_layer_norm_backward_kernel,
}
GROUP_NORM_SILU = {
    "whole": group_norm_silu.group_norm_silu_whole_kernel,
    "statistics": group_norm_silu.group_norm_silu_statistics_kernel,
    "apply": group_norm_silu.group_norm_silu_apply_kernel,
    "sums": group_norm_silu_backward.group_norm_silu_sums_kernel,
    "dx": group_norm_silu_backward.group_norm_silu_dx_kernel,
}


def of_ada_layer_norm(
    kernel: str, dtype: str, channels: int, *, gated: bool = True, affine: bool = True, rows: bool = False
) -> Variant:
    """kernel: of ADA_LAYER_NORM; dtype: "fp16", "bf16" or "fp32". rows: scale has rows of its own."""
    function = ADA_LAYER_NORM[kernel]
    values = {
        "affine": affine, "biased": affine, "gated": gated, "added": gated, "together": not rows, "scale_rows": rows,
        "shift_rows": False, "gate_rows": False, "block": triton.next_power_of_2(channels),
    }  # fmt: skip
    types = {name: "i32" for name in function.arg_names} | {"eps": "fp32"}
    tensors = ("x", "scale", "shift", "gate", "residual", "weight", "bias", "out", "grad", "dx")
    types |= {name: "*" + dtype for name in tensors}
    types |= {name: "*fp32" for name in ("dscale", "dshift", "dgate", "dweight", "dbias")}
    types |= {"dscale": "*" + dtype} if rows else {}
    options = {"num_warps": ada_layer_norm.warps_for(channels), "enable_fp_fusion": True}
    multiples = tuple(n for n in function.arg_names if n == "channels" or n.endswith(("_batch", "_row")))
    return _variant(function, types, values, options, multiples)


def of_group_norm_silu(
    kernel: str, dtype: str, cut: Plan, *, channels_last: bool, adaptive: bool = False
) -> Variant:  # fmt: skip
    """kernel: of GROUP_NORM_SILU; cut: what a launch uses."""
    function = GROUP_NORM_SILU[kernel]
    values = {
        "affine": True, "biased": True, "scaled": adaptive, "shifted": adaptive, "silu": True,
        "block_channels": cut.block_channels, "block_pixels": cut.block_pixels,
        "more_channels": cut.more_channels, "parts_block": triton.next_power_of_2(cut.parts),
    }  # fmt: skip
    # As at a launch: the contiguous stride is the constant 1, the other a multiple of 16.
    values["channel_stride" if channels_last else "pixel_stride"] = 1
    multiples = ("channels", "pixels", "pixel_stride" if channels_last else "channel_stride")
    types = {name: "i32" for name in function.arg_names} | {"eps": "fp32"}
    types |= {name: "*" + dtype for name in ("x", "weight", "bias", "scale", "shift", "out", "grad", "dx")}
    types |= {name: "*fp32" for name in ("partial", "sums")}
    options = {"num_warps": cut.num_warps, "enable_fp_fusion": True}
    return _variant(function, types, values, options, multiples)


def _variant(
    function: triton.JITFunction, types: dict, values: dict, options: dict, multiples: tuple[str, ...]
) -> Variant:
    constants = {name: value for name, value in values.items() if name in function.arg_names}
    return Variant(function, types, constants, options, tuple(n for n in multiples if n in function.arg_names))
