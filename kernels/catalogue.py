"""Every kernel in every type and configuration that a launch may ask for, with the bytes that it moves for one shape.

Made to be compiled ahead of time: `fastdiff kernels`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from fastdiff.kernels import attention_variants, costs, linear_combine, norm_variants
from fastdiff.kernels.ahead_of_time import Variant
from fastdiff.kernels.costs import DEVICES, Cost
from fastdiff.kernels.group_norm_plan import plan

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Entry(NamedTuple):
    """kernel, detail: for the reader; usual: what a call compiles that asks for nothing special. shape: the one that
    `cost` counts for; it is given how many program instances run at once."""

    op: str
    kernel: str
    dtype: str
    detail: str
    usual: bool
    variant: Variant
    shape: str
    cost: Callable[[int], Cost]


def entries(target: str) -> Iterator[Entry]:
    """All of them for one of ahead_of_time.TARGETS."""
    yield from _ada_layer_norm(target)
    yield from _attention(target)
    yield from _group_norm_silu(target)
    yield from _linear_combine()


def _attention(target: str) -> Iterator[Entry]:
    device = DEVICES[target]
    model = {"forward": costs.attention_forward, "dq": costs.attention_backward_dq, "dkv": costs.attention_backward_dkv}
    cases = [(dtype, dim, {}) for dtype in TYPES for dim in attention_variants.DIMS]
    unusual = [{"masking": "additive"}, {"masking": "boolean"}, {"shape": "prompt"}, {"shape": "small"}]
    cases += [(dtype, dim, special) for dtype, dim, _ in cases for special in unusual]
    cases += [("fp32", dim, {"precision": "tf32"}) for dim in attention_variants.DIMS]
    for (dtype, dim, special), kernel in itertools.product(cases, attention_variants.KERNELS):
        queries = 256 if special.get("shape") == "small" else 4096
        keys = {"prompt": 77, "small": 256}.get(special.get("shape", ""), 4096)
        heads, size = 16, TYPES[dtype].itemsize
        for variant in attention_variants.variants(kernel, target, dtype, dim, **special):
            block = "block_n" if kernel == "dkv" else "block_m"

            def cost(resident: int, kernel=kernel, variant=variant, block=block, sizes=(queries, keys, dim, size)):
                tile = {block: variant.constants[block]}
                return model[kernel](1, 16, *sizes, **tile, resident=resident, device=device)

            yield Entry(
                "attention", kernel, dtype, f"D={dim}" + "".join(f" {value}" for value in special.values()),
                not special, variant, f"1x{heads}x{queries}x{keys}x{dim}", cost,
            )  # fmt: skip
    for dtype, dim in itertools.product(TYPES, attention_variants.DIMS):
        for variant in attention_variants.helpers(dtype, dim):
            name = variant.kernel.__name__.removeprefix("attention_").removesuffix("_kernel")
            size = TYPES[dtype].itemsize

            def cost(_: int, name=name, dim=dim, size=size) -> Cost:
                rows = 16 * 4096
                if name == "delta":
                    return costs.attention_delta(1, 16, 4096, dim, size)
                parts = 4 if name == "combine" else 0  # else the maps, of 4096 keys
                least = rows * (parts * (dim + 1) * 4 + dim * size + 4)
                if not parts:
                    least = rows * (2 * dim * size + 4096 * size + 4)
                return Cost(0, least, least)

            yield Entry("attention", name, dtype, f"D={dim}", dim == 64, variant, f"1x16x4096x4096x{dim}", cost)


def _ada_layer_norm(target: str) -> Iterator[Entry]:
    device = DEVICES[target]
    for dtype, channels, gated, name in itertools.product(
        TYPES, (320, 1152, 4096), (True, False), norm_variants.ADA_LAYER_NORM
    ):

        def cost(_: int, name=name, size=TYPES[dtype].itemsize, channels=channels, gated=gated) -> Cost:
            if name == "forward":
                return costs.ada_layer_norm(8, 1024, channels, size, gated=gated)
            return costs.ada_layer_norm_backward(8, 1024, channels, size, gated=gated, device=device)

        variant = norm_variants.of_ada_layer_norm(name, dtype, channels, gated=gated)
        detail = f"C={channels}" + " gate" * gated
        usual = channels == 1152 and gated
        yield Entry("ada_layer_norm", name, dtype, detail, usual, variant, f"8x1024x{channels}", cost)


def _group_norm_silu(target: str) -> Iterator[Entry]:
    """Of a level of Stable Diffusion's U-Net whose groups stay in registers, and of one of its autoencoder."""
    device = DEVICES[target]
    for dtype, last, adaptive in itertools.product(TYPES, (False, True), (False, True)):
        size = TYPES[dtype].itemsize
        for name in norm_variants.GROUP_NORM_SILU:
            largest = (2, 1280, 16) if last else (2, 640, 32)  # that stay in registers
            samples, channels, edge = largest if name == "whole" else (1, 128, 512)
            numbers = samples * channels * edge**2
            cut = plan(
                samples, 32, channels // 32, edge**2, size, channels_last=last, processors=device.processors,
                second_cache=device.second_cache, tensors=2 if name in ("sums", "dx") else 1,
            )  # fmt: skip

            def cost(_: int, name=name, numbers=numbers, size=size) -> Cost:
                # Tensors of x's size that a launch reads and writes.
                tensors = {"whole": 2, "statistics": 1, "apply": 2, "sums": 2, "dx": 3}[name]
                return Cost(6 * tensors * numbers, tensors * numbers * size, tensors * numbers * size)

            detail = ("channels last" if last else "channels first") + " adaptive" * adaptive
            variant = norm_variants.of_group_norm_silu(name, dtype, cut, channels_last=last, adaptive=adaptive)
            shape = f"{samples}x{channels}x{edge}x{edge}"
            yield Entry("group_norm_silu", name, dtype, detail, not adaptive, variant, shape, cost)


def _linear_combine() -> Iterator[Entry]:
    types = TYPES | {"fp64": torch.float64}
    for dtype, outputs, noisy in itertools.product(types, (1, 2, 4, 8), (False, True)):
        for variant in linear_combine.variants(types[dtype], outputs, noisy):
            state = torch.promote_types(types[dtype], torch.float32).itemsize

            def cost(_: int, outputs=outputs, noisy=noisy, size=types[dtype].itemsize, state=state) -> Cost:
                copies = [] if size == state else [size]
                written = [state] * outputs + copies
                return costs.linear_combine(8 * 4 * 128 * 128, [state, state, size], written, noises=noisy)

            detail = f"3 to {outputs}" + " noise" * noisy
            yield Entry(
                "linear_combine", "step", dtype, detail, outputs <= 2 and dtype != "fp64", variant, "8x4x128x128", cost
            )
