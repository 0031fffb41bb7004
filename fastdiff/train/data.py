"""Data of a run: what has a length and is drawn by numbers, or what comes in batches, one after the other.

A batch is a tensor x0 (B, ...), or (x0, cond), where cond is a tensor of classes (B,) or a mapping of the network's
arguments, each with B rows. Batch k of a run is always the same, so that a run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.arguments import described
from fastdiff.errors import expect
from fastdiff.train.seeds import EPOCH, ORDER, READING, derived

Batch = tuple[Tensor, dict[str, Tensor]]


class Data(ABC):
    """Batches by their number. fingerprint: the same for the same data, as far as that can be told."""

    fingerprint: str

    @abstractmethod
    def batch(self, number: int, count: int) -> Batch:
        """Batch `number` of the run, of `count` samples: x0 in floating point, pictures in [-1, 1], and the network's
        further arguments."""

    @abstractmethod
    def example(self, count: int) -> Batch:
        """At most `count` samples, always the same, to look at and to validate on."""


class Samples(Data):
    """A tensor, a sequence or a torch Dataset with a length: every sample once an epoch, in an order of the seed's.

    A tensor of uint8 holds pictures, (N, C, H, W), which become values in [-1, 1]. An item of other data is as a batch
    is, without the first axis. indices: of the samples to take, all unless given. Raises ValueError for no samples.
    """

    def __init__(
        self, source: Any, *, seed: int = 0, fingerprint: str | None = None, indices: Sequence[int] | None = None
    ) -> None:
        self.source, self.seed = source, seed
        self.indices = range(len(source)) if indices is None else indices
        expect(len(self.indices) > 0, "data holds no samples")
        self.fingerprint = fingerprint or _fingerprint(source)
        self._order = (-1, torch.empty(0))  # of an epoch

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, number: int, count: int) -> Batch:
        """See `Data.batch`."""
        return self._take([self._drawn(number * count + k) for k in range(count)])

    def example(self, count: int) -> Batch:
        """See `Data.example`."""
        return self._take(self.indices[:count])

    def parted(self, every: int) -> tuple[Samples, Samples]:
        """Without each `every`-th sample, and those alone."""
        own = self.indices
        rest, held = [i for k, i in enumerate(own) if (k + 1) % every], own[every - 1 :: every]
        name = f"{self.fingerprint} without each {every}th"
        return (
            Samples(self.source, seed=self.seed, fingerprint=name, indices=rest),
            Samples(self.source, seed=self.seed, fingerprint=self.fingerprint, indices=held),
        )

    def _take(self, numbers: Sequence[int]) -> Batch:
        if isinstance(self.source, Tensor):
            return split(self.source[list(numbers)])
        return split(torch.utils.data.default_collate([self.source[i] for i in numbers]))

    def _drawn(self, position: int) -> int:
        """Which sample is drawn as the `position`-th of the run."""
        epoch, offset = divmod(position, len(self))
        if epoch != self._order[0]:
            generator = torch.Generator().manual_seed(derived(self.seed, epoch, ORDER))
            self._order = epoch, torch.randperm(len(self), generator=generator)
        return self.indices[int(self._order[1][offset])]


class Stream(Data):
    """An iterable of batches, such as a DataLoader, begun again whenever it ends.

    A run that goes on reads and drops the batches that it had; processes each read all of them and take their own. The
    iterable must give the same batches in the same order each time, with torch seeded by the number of the epoch.
    Raises ValueError for one that is empty or gives batches of another size.
    """

    def __init__(self, source: Iterable[Any], *, seed: int = 0, fingerprint: str | None = None) -> None:
        self.source, self.seed = source, seed
        self.fingerprint = fingerprint or f"a stream of {type(source).__name__}"
        self._iterator: Iterator[Any] | None = None
        self._next = self._epoch = 0

    def batch(self, number: int, count: int) -> Batch:
        """See `Data.batch`."""
        if number < self._next:
            self._iterator, self._next, self._epoch = None, 0, 0
        with torch.random.fork_rng(devices=[]):
            while self._next < number:
                self._read()
            torch.manual_seed(derived(self.seed, number, READING))
            x0, cond = split(self._read())
        expect(
            len(x0) == count,
            f"data gave a batch of {len(x0)} samples, expected {count}: set batch to the loader's, drop_last=True",
        )
        return x0, cond

    def example(self, count: int) -> Batch:
        """See `Data.example`."""
        with torch.random.fork_rng(devices=[]):
            x0, cond = split(Stream(self.source, seed=self.seed)._read())
        return x0[:count], {name: value[:count] for name, value in cond.items()}

    def _read(self) -> Any:
        for begun in (self._iterator is None, True):
            if begun:
                torch.manual_seed(derived(self.seed, self._epoch, EPOCH))
                self._iterator, self._epoch = iter(self.source), self._epoch + 1
            try:
                assert self._iterator is not None
                found = next(self._iterator)
            except StopIteration:
                continue
            self._next += 1
            return found
        raise ValueError("data gave no batch when it was begun anew")


def get_data(source: Any, *, seed: int = 0, fingerprint: str | None = None) -> Data:
    """Data of what was given: `Data` as it is, `Samples` of what has a length and items, `Stream` of other iterables.

    Raises TypeError for anything else, for an iterator, which cannot be begun again, and for an IterableDataset, whose
    items are no batches.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, torch.utils.data.IterableDataset):
        raise TypeError("an IterableDataset gives samples one by one; give a DataLoader of it, which makes batches")
    if isinstance(source, Iterator):
        raise TypeError(
            f"data can be gone through only once, got {described(source)}; give what can be begun again, such as a "
            "DataLoader"
        )
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, (str, bytes, Mapping)):
        return Samples(source, seed=seed, fingerprint=fingerprint)
    if isinstance(source, Iterable) and not isinstance(source, (str, bytes, Mapping)):
        return Stream(source, seed=seed, fingerprint=fingerprint)
    raise TypeError(f"data must be a tensor, a Dataset or an iterable of batches, got {described(source)}")


def split(batch: Any) -> Batch:
    """(x0, cond) of a batch. uint8 becomes values in [-1, 1]. Raises TypeError for another form or dtype."""
    x0, *rest = batch if isinstance(batch, (list, tuple)) else [batch]
    if len(rest) > 1:
        raise TypeError(f"a batch must be x0 or (x0, cond), got {len(batch)} parts")
    given = rest[0] if rest else {}
    cond = dict(given) if isinstance(given, Mapping) else {"y": given}
    for name, value in (("x0", x0), *cond.items()):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} of a batch must be a tensor, got {described(value)}")
    if x0.dtype == torch.uint8:
        x0 = x0.float() / 127.5 - 1
    if not x0.is_floating_point():
        raise TypeError(f"x0 of a batch must be floating point, or uint8 for pictures, got {x0.dtype}")
    return x0, cond


def _fingerprint(source: Any) -> str:
    if isinstance(source, Tensor):
        values = source.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return hashlib.sha256(values.numpy().tobytes()).hexdigest()
    return getattr(source, "fingerprint", None) or f"{len(source)} items of {type(source).__name__}"
