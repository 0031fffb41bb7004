"""attention of heads wider than 256: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attention import INSTRUCTION, SMALL, tensor
from checks import assert_fits, assert_no_worse

from fastdiff.kernels.ahead_of_time import catalogue
from fastdiff.kernels.ahead_of_time.compile import launches
from fastdiff.kernels.attention import attention_forward


def check(shape, dtype, layout="bhsd", *, mask=None, **options):
    batch, heads, queries, keys, dim = shape
    q, k, v = (tensor(batch, heads, n, dim, dtype, layout) for n in (queries, keys, keys))
    ours, lse = attention_forward(q, k, v, mask=mask, tile=SMALL, **options)
    exact_mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=exact_mask)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    eps = torch.finfo(dtype).eps + dim**0.5 * torch.finfo(torch.float32).eps
    assert_no_worse(ours, theirs, exact, eps * float(exact.abs().max()), shape, dtype, layout)
    if mask is None:
        sums = (q.double() @ k.double().mT * dim**-0.5).logsumexp(-1)
        assert (lse.double() - sums).abs().max() <= 1e-5 * (1 + sums.abs().max())


def numbers(name: str) -> None:
    """name: of a dtype."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    dtype = getattr(torch, name)
    check((1, 1, 33, 40, 512), dtype)
    check((1, 2, 20, 77, 320), dtype, "bshd")
    check((2, 1, 17, 19, 260), dtype, "qkv")
    check((1, 1, 5, 20, 400), dtype, "columns")
    check((1, 1, 20, 100, 512), dtype, splits=3)
    check((1, 1, 18, 40, 384), dtype, mask=torch.rand(18, 40) < 0.7)
    check((1, 1, 18, 40, 384), dtype, mask=torch.randn(1, 1, 18, 40).to(dtype))


def compiles(target: str) -> None:
    """The tile of the target, with all keys in full blocks and not, masked, and with the keys in parts. With parts, on
    sm_90, 64 bytes spill, before and after the loop; without parts half of the multiprocessors idle at 4096 queries.
    """
    for dtype, dim, keys, options in (
        ("fp16", 512, 4096, {}), ("bf16", 512, 4000, {}), ("fp16", 320, 4096, {}), ("fp16", 512, 4096, {"splits": 4}),
        ("fp16", 512, 4096, {"mask": catalogue.tensor("fp16", 1, 1, 4096, 4096)}),
    ):  # fmt: skip
        q, k = catalogue.tensor(dtype, 1, 1, 4096, dim), catalogue.tensor(dtype, 1, 1, keys, dim)
        for launch in launches(target, attention_forward, q, k, k, **{"splits": 1, **options}):
            stack = 64 if target == "sm_90" and "splits" in options else 0
            found = assert_fits(launch, dtype, dim, keys, list(options), stack=stack)
            instruction = "mma.sync" if target == "sm_100" else INSTRUCTION[target]
            assert launch.name != "attention_forward" or found.matrix_instruction == instruction, found
