"""Layers whose weights lie one after the other in memory, so that one product computes all of them.

The parameters stay what they are, with the same numbers: their memory is moved once, as torch.nn.RNN's
`flatten_parameters` does it. So nothing is kept twice, and whatever is written to a weight is read by the next call.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.compiler.fused import linear
from fastdiff.runtime import choice, graphs
from fastdiff.runtime.dispatcher import is_memory

_MOVES = 8  # of the same weights, after which they stay apart: somebody else moves them as well
_ALIGNED = 16  # bytes, at a multiple of which a factor of a product starts
_lock = threading.Lock()


class _Joint:
    """Several weights as one, whose first dimension is the sum of theirs."""

    def __init__(self) -> None:
        self._moves = 0

    def __call__(self, weights: Sequence[Tensor]) -> Tensor | None:
        """A view of all of them, moved next to each other if they are not; None where they must stay apart."""
        whole = _whole(weights)
        if whole is not None or self._moves >= _MOVES or graphs.capturing():
            return whole
        if (reason := _bound(weights)) is not None:
            choice.note("linear", f"layers of one input are computed one by one: {reason}")
            self._moves = _MOVES
            return None
        with _lock:
            if _whole(weights) is None:
                self._moves += 1
                _move(weights)
        return _whole(weights)


class JoinedLinear(nn.Module):
    """Layers of one input as one product: their results side by side.

    Called with x (..., K), the weights (N_i, K), and the biases (N_i,) if `biased`; gives (..., N_1 + N_2 + ...).
    """

    def __init__(self, count: int, biased: bool) -> None:
        super().__init__()
        self.count, self.biased = count, biased
        self._weight, self._bias = _Joint(), _Joint()

    def forward(self, x: Tensor, *tensors: Tensor) -> Tensor:
        weights, biases = tensors[: self.count], tensors[self.count :]
        weight = self._weight(weights)
        bias = self._bias(biases) if self.biased and weight is not None else None
        if weight is None or (self.biased and bias is None):
            pairs = zip(weights, biases) if self.biased else ((each, None) for each in weights)
            return torch.cat([F.linear(x, *pair) for pair in pairs], -1)
        return linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.count} layers"


class StackedLinear(nn.Module):
    """Layers of the same size, each with its own input, as one batch of products.

    Called with x (n, B, K), n weights (N, K), and n biases (N,) if `biased`; gives (n, B, N).
    """

    def __init__(self, count: int, biased: bool) -> None:
        super().__init__()
        self.count, self.biased = count, biased
        self._weight, self._bias = _Joint(), _Joint()

    def forward(self, x: Tensor, *tensors: Tensor) -> Tensor:
        weight = _stack(self._weight, tensors[: self.count]).transpose(1, 2)
        if not self.biased:
            return torch.bmm(x, weight)
        return torch.baddbmm(_stack(self._bias, tensors[self.count :])[:, None], x, weight)

    def extra_repr(self) -> str:
        return f"{self.count} layers"


class StackedEmbedding(nn.Module):
    """The same rows of n tables (V, C) at once. Called with indices (B,) and the tables; gives (n, B, C)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self._table = _Joint()

    def forward(self, indices: Tensor, *tables: Tensor) -> Tensor:
        whole = self._table(tables)
        if whole is None:
            return torch.stack([F.embedding(indices, table) for table in tables])
        return whole.view(self.count, *tables[0].shape).index_select(1, indices)

    def extra_repr(self) -> str:
        return f"{self.count} tables"


JOINED: tuple[type[nn.Module], ...] = (JoinedLinear, StackedLinear, StackedEmbedding)


def _stack(joint: _Joint, tensors: Sequence[Tensor]) -> Tensor:
    """(n, ...) of n tensors of one shape, in place where they lie next to each other."""
    whole = joint(tensors)
    return torch.stack(tuple(tensors)) if whole is None else whole.view(len(tensors), *tensors[0].shape)


def _whole(weights: Sequence[Tensor]) -> Tensor | None:
    """All in one, if each starts where the one before ends."""
    first = weights[0]
    place, rows = first.data_ptr(), 0
    for weight in weights:
        if weight.data_ptr() != place or not weight.is_contiguous():
            return None
        place += weight.nbytes
        rows += weight.shape[0]
    storage = first.untyped_storage()
    if place > storage.data_ptr() + storage.nbytes():  # other memory, which happens to lie behind
        return None
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


def _bound(weights: Sequence[Tensor]) -> str | None:
    """Why the memory of these must not be moved, or None."""
    if len({id(weight) for weight in weights}) != len(weights):
        return "two of them are the same parameter"
    for weight in weights:
        if type(weight) not in (Tensor, nn.Parameter) or not is_memory(weight) or weight.is_inference():
            return "a weight is no ordinary tensor"
        if not weight.is_contiguous() or weight.nbytes % _ALIGNED or weight.dtype is not weights[0].dtype:
            return f"a weight of {tuple(weight.shape)} has gaps, or no multiple of {_ALIGNED} bytes"
    sharing = Counter(weight.untyped_storage()._cdata for weight in weights)
    alone = _users(torch.empty(1, dtype=torch.float32, device="cpu"))  # which counts whoever asks as well
    if any(_users(weight) > alone - 1 + sharing[weight.untyped_storage()._cdata] for weight in weights):
        return "another tensor, of a state_dict() for example, shares the memory of a weight"
    return None


def _users(tensor: Tensor) -> int:
    """How many tensors share the memory of this one, and a constant."""
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


def _move(weights: Sequence[Tensor]) -> None:
    """Give the weights memory next to each other, with the numbers that they have."""
    with torch.inference_mode(False), torch.no_grad():
        memory = torch.cat([weight.detach().flatten() for weight in weights])
        place = 0
        for weight in weights:
            weight.data = memory[place : place + weight.numel()].view(weight.shape)
            place += weight.numel()
