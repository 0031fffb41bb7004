"""linear_combine in Triton: the solver's step, the counterpart of csrc/cuda/linear_combine.cu.

Coefficients, addresses and the keys of the noise are read from device memory, so one captured graph serves every
Program of the same shape. Products and sums are rounded one by one, in the order of the inputs, and the noise is made
of the same operations as on the CPU (csrc/include/fastdiff/philox.h): launches must pin `enable_fp_fusion` to False. No
GPU has run it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.driver import driver

from .. import launching
from ..launching import Launch

MAX_KEPT = 1024  # launches of steps; tables and coefficients on devices, some 100 bytes each
BLOCK = 1024  # numbers of every output that a program instance makes; whole groups of the noise
TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Kinds of inputs: places in fastdiff.program.KINDS.
BUFFER, COND, UNCOND, NOISE = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def log_unit(x):
    """log(x) for x in (0, 1]: mantissa in [sqrt(1/2), sqrt(2)), then a polynomial for the rest of the series."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - exponent * (1 << 23)).to(tl.float32, bitcast=True) - 1.0
    p = f * -0.08101558685302734 + 0.12712307274341583
    p = p * f + -0.12972238659858704
    p = p * f + 0.14202174544334412
    p = p * f + -0.16642247140407562
    p = p * f + 0.20001468062400818
    p = p * f + -0.25000298023223877
    p = p * f + 0.333333283662796
    return (f - (0.5 * f) * f + p * ((f * f) * f)) + exponent.to(tl.float32) * 0.6931471824645996


@triton.jit
def box_muller(w1, w2):
    """Two normals from two words: radius sqrt(-2 log u1), angle 2 pi u2; u1 in (0, 1] has 31 bits, u2 in [0, 1) 24."""
    u1 = ((w1 >> 1).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10
    u2 = (w2 >> 8).to(tl.int32).to(tl.float32) * 5.960464477539063e-08
    radius = tl.sqrt_rn(-2.0 * log_unit(u1))
    # sin and cos: the nearest quarter turn, and polynomials on the eighth of a turn around it.
    quarter = (4.0 * u2 + 0.5).to(tl.int32)
    r = u2 - 0.25 * quarter.to(tl.float32)
    y = r * r
    s = y * 41.4728889465332 + -76.69786834716797
    s = s * y + 81.6052017211914
    s = s * y + -41.34170150756836
    s = (s * y + 6.2831854820251465) * r
    c = y * 59.22028732299805 + -85.4428482055664
    c = c * y + 64.93931579589844
    c = c * y + -19.739208221435547
    c = c * y + 1.0
    odd = (quarter & 1) != 0
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    sine = tl.where((quarter & 2) != 0, -sine, sine)
    cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    return radius * cosine, radius * sine


@triton.jit
def normal_block(first, seed, sample, draw, block: tl.constexpr):
    """Normals [first, first + block) of a draw for a sample; both multiples of 64."""
    counters: tl.constexpr = block // 4
    counter = first // 4 + tl.arange(0, counters)  # of all elements before, each counter has four
    low, high = (sample & 0xFFFFFFFF).to(tl.uint32), (sample >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, counter.to(tl.uint32), draw.to(tl.uint32), low, high)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    # Element 16 j + i of a group is normal j of counter 16 group + i.
    z = tl.join(tl.join(z0, z2), tl.join(z1, z3)).reshape(block // 64, 16, 4)
    return tl.permute(z, (0, 2, 1)).reshape(block)


@triton.jit
def store_sums(addresses, sums, place, inside, m, num_outputs, dtype: tl.constexpr):
    """Every row of sums where its address is not 0; the addresses are 3 apart."""
    to = tl.load(addresses + 3 * m, mask=m < num_outputs, other=0)
    pointers = to.to(tl.pointer_type(dtype))[:, None] + place[None, :]
    tl.store(pointers, sums.to(dtype), mask=(to != 0)[:, None] & inside[None, :])


@triton.jit
def linear_combine_kernel(
    cond, uncond,  # the network's outputs
    table,  # int64: kind, and address or draw + 1, of each input; three addresses of each output: state, model, model
    coefficients,  # (num_inputs, padded_outputs), of the type of the sums
    keys,  # (batch, 2) int64: seed and sample number
    broken,  # int32, receives 1 where a result is not finite
    elements, num_inputs, num_outputs,
    padded_outputs: tl.constexpr, state: tl.constexpr, sum_type: tl.constexpr, noisy: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Program instance (p, b) makes elements [p * block, (p + 1) * block) of sample b of every output."""
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * block
    i = first + tl.arange(0, block)
    inside = i < elements
    place = sample * elements + i
    m = tl.arange(0, padded_outputs)
    sums = tl.zeros((padded_outputs, block), dtype=sum_type)
    for k in range(num_inputs):
        kind, value = tl.load(table + 2 * k), tl.load(table + 2 * k + 1)
        x = tl.zeros((block,), dtype=sum_type)
        if kind == BUFFER:
            x = tl.load(value.to(tl.pointer_type(state)) + place, mask=inside, other=0.0).to(sum_type)
        elif kind == COND:
            x = tl.load(cond + place, mask=inside, other=0.0).to(sum_type)
        elif kind == UNCOND:
            x = tl.load(uncond + place, mask=inside, other=0.0).to(sum_type)
        elif noisy:
            seed = tl.load(keys + 2 * sample).to(tl.uint64, bitcast=True)
            number = tl.load(keys + 2 * sample + 1).to(tl.uint64, bitcast=True)
            x = normal_block(first, seed, number, value, block).to(sum_type)
        c = tl.load(coefficients + k * padded_outputs + m)
        sums += c[:, None] * x[None, :]
    outputs = table + 2 * num_inputs
    store_sums(outputs, sums, place, inside, m, num_outputs, state)
    store_sums(outputs + 1, sums, place, inside, m, num_outputs, cond.dtype.element_ty)
    store_sums(outputs + 2, sums, place, inside, m, num_outputs, cond.dtype.element_ty)
    # 0 * y is 0 for a finite y and NaN for the others.
    bad = tl.where(inside[None, :], (sums * 0 != 0).to(tl.int32), 0)
    if tl.max(tl.max(bad, axis=1), axis=0) != 0:
        tl.store(broken, 1)


def launch_step(
    table: Tensor, coefficients: Tensor, keys: Tensor, broken: Tensor, cond: Tensor, uncond: Tensor, *, batch: int,
    elements: int, num_inputs: int, num_outputs: int, state: torch.dtype, noisy: bool,
) -> None:  # fmt: skip
    """One step; the arguments are those of the kernel. state: the type of the buffers; noisy: an input is noise."""
    if not batch * elements:
        return
    if not noisy:  # samples matter to the noise alone
        batch, elements = 1, batch * elements
    launch = _step(
        batch, elements, num_inputs, num_outputs, state, coefficients.dtype, noisy, cond.dtype, uncond.dtype
    )  # fmt: skip
    launch(cond, uncond, table, coefficients, keys, broken)


@functools.lru_cache(MAX_KEPT)
def _step(
    batch: int, elements: int, num_inputs: int, num_outputs: int, state: torch.dtype, sums: torch.dtype, noisy: bool,
    *pointers: torch.dtype,
) -> Launch:  # fmt: skip
    """The launch of a step; pointers: dtypes of cond and uncond."""
    return Launch(
        linear_combine_kernel, (triton.cdiv(elements, BLOCK), batch), elements=elements, num_inputs=num_inputs,
        num_outputs=num_outputs, padded_outputs=triton.next_power_of_2(num_outputs), state=TYPES[state],
        sum_type=TYPES[sums], noisy=noisy, block=BLOCK, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def make_table(
    kinds: Sequence[int], numbers: Sequence[int], outputs: Sequence[Sequence[int]], device: torch.device
) -> Tensor:
    """The kernel's table. kinds: of the inputs, places in fastdiff.program.KINDS; numbers: the address of a buffer, the
    draw of a noise; outputs: three addresses each, or 0."""
    entries = [(kind, number + 1 if kind == NOISE.value else number) for kind, number in zip(kinds, numbers)]
    flat = [value for entry in (*entries, *outputs) for value in entry]
    return torch.tensor(flat, dtype=torch.int64, device="cpu").to(device)


class Forward:
    """The launch of linear_combine for inputs like these.

    The kernel reads coefficients and addresses from the device's memory. What was copied there is kept by its values,
    as the steps of a loop come again, and its allocations with them; a copy is waited for, and takes about 10 us.
    """

    def __init__(self, inputs: Sequence[Tensor], num_outputs: int) -> None:
        first = inputs[0]
        self._outputs, self._dtype, self._device = num_outputs, first.dtype, first.device
        self._on_gpu = launching.on_gpu(first)
        self._as_it_is = all(x.is_contiguous() for x in inputs)
        self._sums = torch.float64 if first.dtype == torch.float64 else torch.float32
        self._launch: Launch | None = None
        if first.numel():
            types = (first.dtype, self._sums, False, first.dtype, first.dtype)
            self._launch = _step(1, first.numel(), len(inputs), num_outputs, *types)
        strides = torch.empty(first.shape, dtype=first.dtype, device="meta").stride()
        self._like = first.shape, strides
        self._padding = (0.0,) * (triton.next_power_of_2(num_outputs) - num_outputs)

    def __call__(self, coefficients: Sequence[float], inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs. coefficients: flat, [k * num_outputs + m]."""
        device, count = self._device, self._outputs
        outputs = [torch.empty_strided(*self._like, dtype=self._dtype, device=device) for _ in range(count)]
        if self._launch is None:
            return outputs
        if not self._as_it_is:
            inputs = [x.contiguous() for x in inputs]
        stream = driver.active.get_current_stream(device.index) if self._on_gpu else 0
        addresses = tuple([x.data_ptr() for x in inputs]), tuple([y.data_ptr() for y in outputs])
        table = _table(*addresses, device, stream)
        sums = _coefficients(tuple(coefficients), count, self._padding, device, self._sums, stream)
        keys, broken = _unused(device)
        self._launch(inputs[0], inputs[0], table, sums, keys, broken)
        return outputs


# By stream as well: on another one, a copy might not have arrived yet, and memory that is given up be in use.
@functools.lru_cache(MAX_KEPT)
def _table(inputs: tuple[int, ...], outputs: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    return make_table([BUFFER.value] * len(inputs), inputs, [(address, 0, 0) for address in outputs], device)


@functools.lru_cache(MAX_KEPT)
def _coefficients(
    flat: tuple[float, ...], count: int, padding: tuple[float, ...], device: torch.device, dtype: torch.dtype,
    stream: int,
) -> Tensor:  # fmt: skip
    columns = [[*flat[first : first + count], *padding] for first in range(0, len(flat), count)]
    return torch.tensor(columns, dtype=torch.float64, device="cpu").to(device, dtype)


@functools.lru_cache(64)
def _unused(device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys of the noise, of which there is none, and where a result that is not finite is told, which nobody reads."""
    keys = torch.empty(0, dtype=torch.int64, device=device)
    return keys, torch.empty(1, dtype=torch.int32, device=device)


def linear_combine(coefficients: Sequence[Sequence[float]], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """out[m] = sum over k of coefficients[m][k] * inputs[k]: as fastdiff.ops.linear_combine, for tensors that Triton
    can reach, all of one shape and dtype. Sums are in float32, or in float64 for that.
    """
    flat = [c for column in zip(*coefficients) for c in column]
    return tuple(Forward(inputs, len(coefficients))(flat, inputs))
