"""Seeds of torch's generators, which take 32 bits of a seed on the CPU."""

from __future__ import annotations

BATCH, ORDER, EPOCH, READING = range(4)  # what is drawn: a batch's noise, orders of samples, streams and their batches


def derived(seed: int, number: int, use: int = BATCH) -> int:
    """The seed of the `number`-th of what a run with `seed` draws, below 2**32; for seed 0 and batches the number.

    Multiples of two odd constants near 2**32 / golden ratio keep uses and seeds apart by more than a run has steps.
    """
    return (number + seed * 0x9E3779B1 + use * 0x85EBCA77) % 2**32
