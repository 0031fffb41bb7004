"""linear_combine in Triton: several weighted sums in one pass, the counterpart of csrc/cpu/linear_combine.cpp.

Addresses and coefficients are read from tables in device memory, so one compiled kernel (and one captured graph) serves
every Program with the same numbers of inputs and outputs. Not yet used by the engine: no GPU has run it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def linear_combine_kernel(
    inputs,  # (num_inputs,) int64 addresses
    outputs,  # (num_outputs,) int64 addresses
    coefficients,  # (num_inputs, num_outputs) float32
    size,
    num_inputs,
    num_outputs: tl.constexpr,
    padded_outputs: tl.constexpr,  # a power of two
    dtype: tl.constexpr,
    block: tl.constexpr,
):
    """Program instance p makes elements [p * block, (p + 1) * block) of every output; sums are float32."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    m = tl.arange(0, padded_outputs)
    sums = tl.zeros((padded_outputs, block), dtype=tl.float32)
    for k in range(num_inputs):
        x = tl.load(tl.load(inputs + k).to(tl.pointer_type(dtype)) + i, mask=i < size, other=0.0)
        c = tl.load(coefficients + k * num_outputs + m, mask=m < num_outputs, other=0.0)
        sums += c[:, None] * x.to(tl.float32)[None, :]
    to = tl.load(outputs + m, mask=m < num_outputs, other=0).to(tl.pointer_type(dtype))
    tl.store(to[:, None] + i[None, :], sums.to(dtype), mask=(m < num_outputs)[:, None] & (i < size)[None, :])


def linear_combine(coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """out[m] = sum over k of coefficients[m][k] * inputs[k]: as fastdiff.ops.linear_combine, for float32, float16 and
    bfloat16 tensors that Triton can reach, all of one shape and dtype. Sums are in float32.
    """
    inputs = [x.contiguous() for x in inputs]
    first = inputs[0]
    outputs = [torch.empty_like(first) for _ in coefficients]
    addresses = [
        torch.tensor([x.data_ptr() for x in xs], dtype=torch.int64, device=first.device) for xs in (inputs, outputs)
    ]
    table = torch.tensor(coefficients, dtype=torch.float64).t().contiguous().to(first.device, torch.float32)
    if first.numel():
        linear_combine_kernel[(triton.cdiv(first.numel(), BLOCK),)](
            *addresses, table, first.numel(), len(inputs), len(outputs), triton.next_power_of_2(len(outputs)),
            TYPES[first.dtype], BLOCK,
        )  # fmt: skip
    return tuple(outputs)
