"""attention's kernels: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from checks import assert_fits
from torch import Tensor

from fastdiff.kernels.attention import attention_backward, attention_forward, attention_maps
from fastdiff.kernels.attention.tiles import Tile

SMALL = Tile(16, 16, 4, 1)
INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}
KERNELS = ("forward", "dq", "dkv")


def tensor(batch: int, heads: int, rows: int, dim: int, dtype: torch.dtype, layout: str) -> Tensor:
    if layout == "bshd":
        return torch.randn(batch, rows, heads, dim).to(dtype).transpose(1, 2)
    if layout == "qkv":  # of a fused projection, with a row that 16 bytes do not divide
        return (
            torch.randn(batch, rows, 3 * heads * dim + 1)
            .to(dtype)[..., 1 : 1 + heads * dim]
            .unflatten(2, (heads, dim))
            .transpose(1, 2)
        )
    if layout == "columns":
        return torch.randn(batch, heads, dim, rows).to(dtype).transpose(2, 3)
    return torch.randn(batch, heads, rows, dim).to(dtype)


def theirs_and_gradients(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: Tensor | None, scale: float | None
) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    out = F.scaled_dot_product_attention(*leaves, attn_mask=mask, scale=scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def check(shape, dtype, layout="bhsd", mask=None, scale=None, tile=SMALL, splits=None, size=1.0, opposed=False):
    batch, heads, queries, keys, dim = shape
    q, k, v, grad = (tensor(batch, heads, n, dim, dtype, layout) for n in (queries, keys, keys, queries))
    q = q * size
    if opposed:  # every score is far below 0, which is the score of rows past the end
        q, k = q.abs(), -k.abs()
    added = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    out, lse = attention_forward(q, k, v, mask=added, scale=scale, tile=tile, splits=splits)
    maps = attention_maps(q, k, lse, mask=added, scale=scale, tile=tile)
    tiles = {"tile_dq": tile, "tile_dkv": tile and tile._replace(apart=splits == 2)}
    ours = [out, *attention_backward(grad, q, k, v, out, lse, mask=added, scale=scale, splits=splits, **tiles)]
    if not out.numel() or not keys:
        assert all(t.eq(0).all() for t in ours)
        return
    doubles = [t.double() for t in (q, k, v, grad)]
    exact_mask = added if added is None or added.dtype == torch.bool else added.double()
    exact = theirs_and_gradients(*doubles, exact_mask, scale)
    theirs = theirs_and_gradients(q, k, v, grad, added, scale)
    # The least that products of rounded factors can err by: eps times the sums of absolute values of their terms. A
    # score's error is relative to |q| |k| and multiplies its probability.
    q, k, v, grad = (t.abs() for t in doubles)
    factor = abs(dim**-0.5 if scale is None else scale)
    p = (torch.zeros(()) if exact_mask is None else exact_mask).expand(batch, heads, queries, keys)
    p = torch.zeros(p.shape, dtype=torch.float64).masked_fill(~p, -torch.inf) if p.dtype == torch.bool else p.double()
    p = (doubles[0] @ doubles[1].mT * (dim**-0.5 if scale is None else scale) + p).softmax(-1).nan_to_num(0)
    ds = p * (grad @ v.mT + (exact[0].abs() * grad).sum(-1, keepdim=True))
    terms = [p @ v, ds @ k * factor, ds.mT @ q * factor, p.mT @ grad]
    single = torch.finfo(torch.float32).eps
    scores = float((q @ k.mT).max()) * factor
    relative = torch.finfo(dtype).eps + max(dim, keys, queries) ** 0.5 * single * (1 + scores)
    for name, mine, other, want, sums in zip(("out", "dq", "dk", "dv"), ours, theirs, exact, terms):
        assert mine.dtype == dtype
        assert mine.shape == want.shape
        error, allowed = (mine.double() - want).abs(), 2 * (other.double() - want).abs().max()
        assert (error <= allowed + relative * sums).all(), (
            shape,
            dtype,
            layout,
            scale,
            splits,
            name,
            float(error.max()),
            float(allowed),
        )
    assert maps.dtype == dtype
    assert ((maps.double() - p).abs() <= relative * p + 1e-7).all(), (shape, dtype, layout)


def masks(batch: int, heads: int, queries: int, keys: int) -> list[Tensor]:
    some = torch.rand(queries, keys) < 0.7
    some[1] = False  # a query without keys
    bias = torch.randn(1, heads, queries, keys)
    bias[..., ::5] = -torch.inf
    ends = torch.arange(keys) < torch.tensor([keys // 2] * batch).reshape(batch, 1, 1, 1)
    return [some, ends, bias, torch.randn(batch, 1, queries, 1), torch.randn(1, keys)]


def numbers(name: str) -> None:
    """name: of a dtype."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    dtype = getattr(torch, name)
    check((1, 2, 33, 77, 40), dtype, "bshd")
    check((2, 1, 18, 32, 72), dtype, "qkv")
    check((1, 1, 32, 48, 80), dtype, splits=2)
    check((1, 1, 5, 20, 96), dtype, "columns")
    check((1, 1, 17, 19, 160), dtype, scale=-0.3)
    check((1, 1, 9, 33, 256), dtype)
    check((1, 1, 1, 1, 3), dtype)
    check((0, 2, 4, 4, 16), dtype)
    check((1, 2, 4, 0, 16), dtype)
    check((1, 1, 20, 40, 64), dtype, size=30.0)
    check((1, 1, 20, 41, 32), dtype, size=30.0, opposed=True)
    check((2, 1, 70, 77, 40), dtype, tile=None)
    for index, mask in enumerate(masks(2, 2, 21, 37)):
        check((2, 2, 21, 37, 24), dtype, ("bhsd", "bshd")[index % 2], mask, splits=1 + index % 3)
    check((1, 1, 20, 128, 16), dtype, mask=torch.randn(20, 128), scale=0.0)


def fits(target: str, dtype: str, dim: int, kernels: Any = KERNELS, limit: int | None = None, **options: str) -> None:
    from fastdiff.kernels.attention.variants import launched

    for name, launch in launched(target, dtype, dim, **options):
        if name in kernels:
            found = assert_fits(launch, dtype, dim, options, shared=limit)
            assert dtype == "fp32" or found.matrix_instruction == INSTRUCTION[target], (
                name,
                dtype,
                dim,
                options,
                found,
            )


def compiles(target: str) -> None:
    from fastdiff.kernels.attention.variants import DIMS, helpers

    if target in ("sm_80", "sm_90"):
        limit = 99 << 10 if target == "sm_80" else None  # what 8.6, 8.9 and 12.0, which use this table, have
        for dim in DIMS:
            if dim != 72:  # the chunks of 80
                fits(target, "fp16", dim, limit=limit)
        fits(target, "bf16", 40, masking="additive", limit=limit)
        fits(target, "bf16", 128, masking="boolean", limit=limit)
        fits(target, "fp16", 40, ["forward", "dq"], shape="prompt", limit=limit)
        fits(target, "fp16", 72, ["forward", "dq"], shape="small", limit=limit)
        fits(target, "fp32", 64, ["forward"], precision="tf32", limit=limit)
    else:
        fits(target, "fp16", 40)
        fits(target, "bf16", 160)
        fits(target, "fp16", 64, ["forward"], masking="additive", shape="prompt")
    fits(target, "fp32", 40)
    fits(target, "fp32", 256, ["forward"] if target.startswith("sm_") else KERNELS)
    if target == "gfx942":
        fits(target, "fp32", 96, ["dkv"])
    if target == "sm_100":
        fits(target, "fp16", 128, ["dq"])
        fits(target, "fp16", 64, ["forward"], shape="prompt")
    for name, launch in helpers(target, "bf16", 72):
        assert_fits(launch, name)


def timed_compiles(target: str) -> None:
    """The tiles that are timed beside the tables', at the largest head dimension of each, with 77 keys."""
    from fastdiff.kernels.ahead_of_time.catalogue import tensor
    from fastdiff.kernels.ahead_of_time.compile import launches
    from fastdiff.kernels.attention.tiles import TIMED, TIMED_BACKWARD

    limit = 99 << 10 if target == "sm_80" else None
    for dim, tile in TIMED[target, "half"]:
        q, k = tensor("fp16", 1, 16, 4096, dim), tensor("fp16", 1, 16, 77, dim)
        (launch,) = launches(target, attention_forward, q, k, k, tile=tile, splits=1)
        assert_fits(launch, dim, tile, shared=limit)
    for (architecture, kind, kernel), found in TIMED_BACKWARD.items():
        assert kind == "half"
        for dim, tile in found if architecture == target else ():
            q, lse = tensor("fp16", 1, 16, 4096, dim), tensor("fp32", 1, 16, 4096)
            tiles = {"tile_dq": tile, "tile_dkv": tile}
            for launch in launches(target, attention_backward, q, q, q, q, q, lse, **tiles, splits=1):
                if launch.name == f"attention_backward_{kernel}":
                    assert_fits(launch, dim, tile, shared=limit)
