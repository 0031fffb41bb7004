"""attention over few keys: numbers in the interpreter, compilation ahead of time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attention import INSTRUCTION, tensor
from checks import assert_fits

from fastdiff.kernels.ahead_of_time import catalogue
from fastdiff.kernels.ahead_of_time.compile import launches
from fastdiff.kernels.attention.few_keys import RESIDENT, FewKeys, attention_few_keys, unfit

SMALL = FewKeys(16, 4, 1)


def check(shape, dtype, layout="bhsd", scale=None, cut=SMALL, size=1.0, opposed=False):
    batch, heads, queries, keys, dim = shape
    q, k, v = (tensor(batch, heads, n, dim, dtype, layout) for n in (queries, keys, keys))
    q = q * size
    if opposed:  # every score is far below 0, which is the score of columns without a key
        q, k = q.abs(), -k.abs()
    ours = attention_few_keys(q, k, v, scale=scale, cut=cut)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    theirs = F.scaled_dot_product_attention(q, k, v, scale=scale)
    assert ours.dtype == dtype
    assert ours.shape == exact.shape
    assert ours.transpose(1, 2).is_contiguous()
    assert torch.equal(ours, attention_few_keys(q, k, v, scale=scale, cut=cut))
    if not ours.numel():
        return
    # The least that products of rounded factors can err by, as in attention.check.
    factor = abs(dim**-0.5 if scale is None else scale)
    scores = float((q.abs().double() @ k.abs().double().mT).max()) * factor
    relative = torch.finfo(dtype).eps + max(dim, keys) ** 0.5 * torch.finfo(torch.float32).eps * (1 + scores)
    error, allowed = (ours.double() - exact).abs(), 2 * (theirs.double() - exact).abs().max()
    sums = (q.double() @ k.double().mT * (dim**-0.5 if scale is None else scale)).softmax(-1) @ v.double().abs()
    assert (error <= allowed + relative * sums).all(), (shape, dtype, layout, float(error.max()), float(allowed))


def numbers(name: str) -> None:
    """name: of a dtype."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    dtype = getattr(torch, name)
    check((1, 2, 33, 77, 40), dtype, "bshd")
    check((2, 1, 50, 77, 72), dtype, "qkv")
    check((1, 1, 20, 128, 80), dtype)
    check((1, 2, 17, 100, 96), dtype, "columns")
    check((1, 1, 40, 64, 160), dtype, scale=-0.3)
    check((1, 1, 9, 33, 128), dtype)
    check((1, 1, 1, 1, 3), dtype)
    check((0, 2, 4, 4, 16), dtype)
    check((1, 1, 20, 40, 64), dtype, size=30.0)
    check((1, 1, 20, 77, 32), dtype, size=30.0, opposed=True)
    check((1, 1, 20, 17, 32), dtype, scale=0.0)
    check((1, 1, 70, 77, 40), dtype, cut=FewKeys())


def compiles(target: str) -> None:
    """The default at every head dimension that the target takes: no spills."""
    for dim in (40, 64, 80, 96, 128, 160):
        for dtype, keys in (("fp16", 77), ("bf16", 128)):
            if unfit(dim, keys) is None:
                q, k = catalogue.tensor(dtype, 2, 8, 4096, dim), catalogue.tensor(dtype, 2, 8, keys, dim)
                (launch,) = launches(target, attention_few_keys, q, k, k)
                found = assert_fits(launch, dtype, dim, keys)
                assert found.matrix_instruction == INSTRUCTION[target], (dim, keys, found)
                if (target, dim) == ("sm_90", 40):
                    assert found.registers * 128 * RESIDENT <= 65536 or keys > 80, found
