"""The compilations of attention's kernels that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..ahead_of_time import costs
from ..ahead_of_time.catalogue import TYPES, USUAL, Entry, constant, tensor
from ..ahead_of_time.compile import TARGETS, Launch, launches
from ..ahead_of_time.costs import Cost
from . import hopper
from .backward import attention_backward
from .few_keys import attention_few_keys, unfit
from .forward import attention_forward, attention_maps

DIMS = (40, 64, 72, 80, 96, 128, 160, 256)
# Heads, queries, keys that tiles are chosen by: many rows and keys, the 77 keys of a prompt, few rows.
SHAPES = {"large": (16, 4096, 4096), "prompt": (16, 4096, 77), "small": (8, 256, 256)}
SPLITS = 4  # of the keys, where their results are combined


def launched(
    target: str, dtype: str, dim: int, *, masking: str = "none", shape: str = "large", precision: str = "ieee"
) -> list[tuple[str, Launch]]:  # fmt: skip
    """Launches of "forward", "delta", "dq" and "dkv" for a shape of SHAPES; two of "dkv" where dk and dv are apart.

    dtype: of USUAL; masking: "none", "boolean" or "additive".
    """
    heads, queries, keys = SHAPES[shape]
    q, k = tensor(dtype, 1, heads, queries, dim), tensor(dtype, 1, heads, keys, dim)
    mask = None if masking == "none" else tensor(dtype, 1, 1, queries, keys)
    options = dict(mask=mask.to(torch.bool) if mask is not None and masking == "boolean" else mask, precision=precision)
    lse = tensor("fp32", 1, heads, queries)
    found = launches(target, attention_forward, q, k, k, **options)
    found += launches(target, attention_backward, q, q, k, k, q, lse, **options)
    return [(_name(launch), launch) for launch in found]


def helpers(target: str, dtype: str, dim: int) -> list[tuple[str, Launch]]:
    """A launch of "combine", of the results of SPLITS, and one of "maps"."""
    heads, queries, keys = SHAPES["large"]
    q, k = tensor(dtype, 1, heads, queries, dim), tensor(dtype, 1, heads, keys, dim)
    found = launches(target, attention_forward, q, k, k, splits=SPLITS)[1:]
    found += launches(target, attention_maps, q, k, tensor("fp32", 1, heads, queries))
    return [(_name(launch), launch) for launch in found]


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target."""
    special: list[dict[str, Any]] = [
        {}, {"masking": "additive"}, {"masking": "boolean"}, {"shape": "prompt"}, {"shape": "small"},
        {"precision": "tf32"},
    ]  # fmt: skip
    for dtype, dim, options in itertools.product(USUAL, DIMS, special):
        if dtype != "fp32" and "precision" in options:
            continue
        found = [(name, launch) for name, launch in launched(target, dtype, dim, **options) if name != "delta"]
        sizes = (1, *SHAPES[options.get("shape", "large")], dim)
        detail = f"D={dim}" + "".join(f" {value}" for value in options.values())
        for name, launch in found:
            cost = _cost(name, launch, sizes, TYPES[dtype].itemsize)
            yield Entry(name, dtype, detail, not options, launch, "x".join(map(str, sizes)), cost)
    for dtype, dim in itertools.product(USUAL, DIMS):
        sizes = (1, *SHAPES["large"], dim)
        deltas = [(name, launch) for name, launch in launched(target, dtype, dim) if name == "delta"]
        for name, launch in deltas + helpers(target, dtype, dim):
            cost = _cost(name, launch, sizes, TYPES[dtype].itemsize)
            yield Entry(name, dtype, f"D={dim}", dim == 64, launch, "x".join(map(str, sizes)), cost)
    yield from _of_half_types(target)


def _of_half_types(target: str) -> Iterator[Entry]:
    """The kernels for few keys and for Hopper, where they can run."""
    for dtype, dim in itertools.product(("fp16", "bf16"), DIMS):
        heads, queries, keys = SHAPES["prompt"]
        q, k = tensor(dtype, 1, heads, queries, dim), tensor(dtype, 1, heads, keys, dim)
        if unfit(dim, keys) is None:
            (launch,) = launches(target, attention_few_keys, q, k, k)
            sizes = (1, heads, queries, keys, dim)
            shape = costs.Attention(*sizes, TYPES[dtype].itemsize)
            least = 2 * shape.q + shape.kv
            cost = constant(Cost(2 * shape.product, least, least))
            yield Entry("few_keys", dtype, f"D={dim}", dim == 40, launch, "x".join(map(str, sizes)), cost)
        if target == "sm_90" and dim <= hopper.MAX_DIM and hopper.missing() is None:
            yield _hopper(target, dtype, dim)


def _hopper(target: str, dtype: str, dim: int) -> Entry:
    sizes = (1, *SHAPES["large"], dim)
    q = tensor(dtype, *sizes[:3], dim)
    (launch,) = launches(target, hopper.attention_hopper, q, q, q)
    shape, device = costs.Attention(*sizes, TYPES[dtype].itemsize), TARGETS[target].device
    block_m = hopper.ROWS * launch.arguments["consumers"]

    def cost(resident: int) -> Cost:
        return costs.attention_forward(shape, block_m=block_m, resident=resident, device=device)

    return Entry("hopper", dtype, f"D={dim}", dim == 64, launch, "x".join(map(str, sizes)), cost)


def _name(launch: Launch) -> str:
    return launch.name.removeprefix("attention_").removeprefix("backward_")


def _cost(name: str, launch: Launch, sizes: tuple[int, int, int, int, int], size: int) -> Callable[[int], Cost]:
    shape, device = costs.Attention(*sizes, size), TARGETS[launch.target].device
    if name in ("forward", "dq"):
        block_m = launch.arguments["block_m"]
        model = costs.attention_forward if name == "forward" else costs.attention_backward_dq
        return lambda resident: model(shape, block_m=block_m, resident=resident, device=device)
    if name == "dkv":
        block_n = launch.arguments["block_n"]
        return lambda resident: costs.attention_backward_dkv(shape, block_n=block_n, resident=resident, device=device)
    if name == "combine":
        return constant(costs.attention_combine(shape, splits=SPLITS))
    return constant({"delta": costs.attention_delta, "maps": costs.attention_maps}[name](shape))
