"""The compilations of attention's kernels that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import triton

from fastdiff.kernels import attention, attention_backward
from fastdiff.kernels.ahead_of_time import Variant
from fastdiff.kernels.attention_tiles import MAPS, Tile, choose, widths

KERNELS = {
    "forward": attention.attention_forward_kernel,
    "dq": attention_backward.attention_backward_dq_kernel,
    "dkv": attention_backward.attention_backward_dkv_kernel,
}
DIMS = (40, 64, 72, 80, 96, 128, 160, 256)
# What tiles are chosen by: many rows and keys, the 77 keys of a prompt, few rows.
SHAPES = {"large": {}, "prompt": {"keys": 77}, "small": {"queries": 256, "keys": 256, "heads": 8, "available": 108}}


def variants(
    kernel: str, target: str, dtype: str, dim: int, *, masking: str = "none", shape: str = "large",
    precision: str = "ieee", tile: Tile | None = None,
) -> list[Variant]:  # fmt: skip
    """What a launch of KERNELS[kernel] compiles for a shape of SHAPES; two where dk and dv are apart.

    dtype: "fp16", "bf16" or "fp32"; masking: "none", "boolean" or "additive".
    """
    kind = "half" if dtype != "fp32" else "single" if precision == "ieee" else precision
    tile = tile or choose(kernel, target, kind, dim, masked=masking != "none", **SHAPES[shape])
    width0, width1 = widths(dim)
    constants = {
        "dim": dim, "width0": width0, "width1": width1, "unit": 4 if dtype == "fp32" else 8, "masking": masking,
        "whole_keys": shape == "large", "whole_queries": shape == "large", "positive": True, "precision": precision,
        "block_m": tile.block_m, "block_n": tile.block_n, "want_dk": True, "want_dv": True,
    }  # fmt: skip
    function = KERNELS[kernel]
    tensors = {name: "*" + dtype for name in ("q", "k", "v", "mask", "out", "grad", "dq", "dk", "dv")}
    tensors |= {"lse": "*fp32", "delta": "*fp32", "scale": "fp32"} | ({"mask": "*u8"} if masking == "boolean" else {})
    types = {name: tensors.get(name, "i32") for name in function.arg_names}
    wanted = [(True, False), (False, True)] if tile.apart else [(True, True)]
    found = []
    for want_dk, want_dv in wanted if kernel == "dkv" else wanted[:1]:
        values = constants | {"want_dk": want_dk, "want_dv": want_dv}
        here = {name: value for name, value in values.items() if name in function.arg_names}
        found.append(Variant(function, types, here, tile.options))
    return found


def helpers(dtype: str, dim: int) -> list[Variant]:
    """The small kernels beside: of the backward's delta, of the splits' combination, of the maps."""
    width0, width1 = widths(dim)
    shape = {"dim": dim, "width0": width0, "width1": width1, "unit": 4 if dtype == "fp32" else 8}
    maps = MAPS["single" if dtype == "fp32" else "half"]
    constants = shape | {"width": triton.next_power_of_2(dim), "masking": "none", "precision": "ieee"}
    tensors = {name: "*" + dtype for name in ("q", "k", "mask", "out", "grad", "maps")}
    tensors |= {"lse": "*fp32", "delta": "*fp32", "parts": "*fp32", "part_lse": "*fp32", "scale": "fp32"}
    found = []
    for function, tile in (
        (attention.attention_combine_kernel, Tile(attention.COMBINE_ROWS, 0, 4, 1)),
        (attention.attention_maps_kernel, maps),
        (attention_backward.attention_delta_kernel, Tile(attention_backward.DELTA_ROWS, 0, 4, 1)),
    ):
        values = constants | {"block_m": tile.block_m, "block_n": tile.block_n}
        here = {name: value for name, value in values.items() if name in function.arg_names}
        types = {name: tensors.get(name, "i32") for name in function.arg_names}
        found.append(Variant(function, types, here, tile.options))
    return found
