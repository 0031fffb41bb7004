"""Standard normal noise: counter-based a sample, from a torch generator, or given.

A run asks for draw 0, 1, ... in the order of the solver's requests; the initial state is a draw of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff import arguments
from fastdiff.arguments import described
from fastdiff.errors import expect
from fastdiff.runtime.native import core

GROUP = core.NORMAL_GROUP
NoiseFunction = Callable[[int], Tensor]
Seed = int | Sequence[int] | NDArray[Any] | Tensor | None
Seeds = int | tuple[int, ...]  # one for the batch, or one a sample
Noise = torch.Generator | Tensor | Sequence[Tensor] | NoiseFunction | None


@dataclass(frozen=True)
class CounterNoise:
    """Noise that depends on (seed, sample, draw, element) alone: the same at any batch size and on any device.

    seeds, samples: one each for every sample of the batch, 0 <= both < 2**64.
    """

    seeds: tuple[int, ...]
    samples: tuple[int, ...]

    @classmethod
    def of(cls, seed: Seed, batch: int, first_sample: int = 0) -> CounterNoise:
        """From what `fastdiff.sample` accepts: a seed for the whole batch (sample k of it is always the same), one
        seed a sample (each as if it were sample 0 of a batch of that seed), or None for a seed from torch's generator;
        numbers of NumPy, arrays and tensors too.
        first_sample: number of the first sample under one seed.
        """
        found, first = fixed_seeds(seed, batch), arguments.whole("first_sample", first_sample, 0)
        if isinstance(found, int):
            return cls((found,) * batch, tuple(range(first, first + batch)))
        return cls(found, (0,) * batch)

    def initial(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The noise that a run starts from, on the CPU."""
        return self._fill(0, shape, dtype)

    def draw(self, number: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Draw `number` of the run, on the CPU."""
        return self._fill(number + 1, shape, dtype)

    def _fill(self, draw: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        count = int(np.prod(shape[1:]))
        rows = torch.empty(shape[0], -(-count // GROUP) * GROUP, dtype=torch.float32, device="cpu")
        for row, seed, sample in zip(rows, self.seeds, self.samples):
            core.normal(row.data_ptr(), count, seed, sample, draw)
        return rows[:, :count].reshape(*shape).to(dtype).contiguous()


def fixed_seeds(seed: Seed, batch: int) -> Seeds:
    """The seeds that are given, or a random one where that is None, for several runs with noise of their own."""
    if seed is None:
        return int(torch.randint(2**62, (), dtype=torch.int64, device="cpu"))
    return arguments.seeds(seed, batch)


def seeds_for(seeds: Seeds, use: int) -> Seeds:
    """Seeds for another use, such as a stage of a cascade, far from those given; use 0 leaves them.

    SplitMix64's finaliser of the seed and the use (Steele et al. 2014, Fast Splittable Pseudorandom Generators).
    """
    if isinstance(seeds, tuple):
        return tuple(_mixed(seed, use) for seed in seeds)
    return _mixed(seeds, use)


def _mixed(seed: int, use: int) -> int:
    if use == 0:
        return seed
    z = (seed + use * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def philox(c: list[NDArray[np.uint64]], k0: int, k1: int) -> list[NDArray[np.uint64]]:
    """Philox4x32-10 (Salmon et al. 2011, Section 3.3): four counter words and two key words to four words."""
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c = [high1 ^ c[1] ^ np.uint64(k0), p1 & mask, high0 ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def reference_normal(count: int, seed: int, sample: int, draw: int) -> NDArray[np.float64]:
    """The same normals in NumPy and float64: the definition that csrc/include/fastdiff/philox.h implements.

    Philox with key `seed` and counter (block, draw, sample), then Box-Muller. Element
    16 j + i of a group of 64 is normal j of block 16 group + i. Returns (count,).
    """
    blocks = np.arange(-(-count // GROUP) * 16, dtype=np.uint64)
    c = [blocks, *(np.full_like(blocks, v) for v in (draw, sample & 0xFFFFFFFF, sample >> 32))]
    c = philox(c, seed & 0xFFFFFFFF, seed >> 32)
    normals = []
    for w1, w2 in ((c[0], c[1]), (c[2], c[3])):
        u1 = ((w1 >> np.uint64(1)).astype(np.float32) + np.float32(0.5)).astype(np.float64) * 2.0**-31
        angle = (w2 >> np.uint64(8)).astype(np.float64) * 2.0**-24 * 2 * np.pi
        radius = np.sqrt(-2 * np.log(u1))
        normals += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(normals).reshape(4, -1, 16).transpose(1, 0, 2).reshape(-1)[:count]


def given_noise(noise: Noise, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> NoiseFunction | None:
    """The draws of a user's noise as a function of their number; None where there is none, and seeds are used.

    noise: a torch.Generator (one `torch.randn` a draw, in the order of their numbers), a tensor or sequence of (draws,
    *shape), or a function of the number. Raises ValueError, naming the draw, where one is of the wrong shape, at once
    unless it is a function's, and when a missing one is asked for.
    """
    if noise is None:
        return None
    if isinstance(noise, torch.Generator):
        return Drawn(noise, tuple(shape), dtype, device)
    if not callable(noise) and not isinstance(noise, (Tensor, list, tuple)):
        what = "noise must be a torch.Generator, a tensor (draws, B, ...), a list of tensors, or a function of the draw"
        raise TypeError(f"{what}, got {described(noise)}")

    def checked(number: int, value: Any) -> Tensor:
        if isinstance(value, Tensor) and tuple(value.shape) == tuple(shape):
            return value
        raise ValueError(f"draw {number} of noise must be a tensor of shape {tuple(shape)}, got {described(value)}")

    if not callable(noise):
        for number, value in enumerate(noise):
            checked(number, value)

    def draw(number: int) -> Tensor:
        if not callable(noise):
            expect(number < len(noise), f"noise holds {len(noise)} draws, and the solver asks for draw {number}")
        value = checked(number, noise(number) if callable(noise) else noise[number])
        return value.to(device=device, dtype=dtype).contiguous()

    return draw


class Drawn:
    """The draws of a generator by their number. One may be asked for again while it is among the last `KEPT`: the
    stages of a step share them."""

    KEPT = 4

    def __init__(
        self, generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.generator, self.shape, self.dtype, self.device = generator, shape, dtype, device
        self.count = 0
        self.kept: dict[int, Tensor] = {}

    def __call__(self, number: int) -> Tensor:
        while self.count <= number:
            value = torch.randn(self.shape, generator=self.generator, dtype=self.dtype, device=self.generator.device)
            self.kept[self.count] = value.to(self.device)
            self.kept.pop(self.count - self.KEPT, None)
            self.count += 1
        expect(number in self.kept, f"draw {number} of the generator was not kept; only the last {self.KEPT} are")
        return self.kept[number]
