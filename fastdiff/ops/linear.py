"""A linear layer with its activation, gate and residual, in one pass over its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.errors import expect
from fastdiff.ops.given import several
from fastdiff.ops.op import Op
from fastdiff.ops.tensors import address, check_tensor, contiguous, dense, rows
from fastdiff.runtime import choice
from fastdiff.runtime.memory import empty
from fastdiff.runtime.native import core

ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh")
_FEW_ROWS, _FEW_INPUTS, _FEW_OUTPUTS = 96, 64, 256
_SIDE = 16  # columns of a tile, which are of one weight


class Arguments(NamedTuple):
    """The signature, once: up to three weights, each with its bias."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    gate: Tensor | None = None
    residual: Tensor | None = None
    activation: str = "none"
    glu: bool = False
    weight_2: Tensor | None = None
    bias_2: Tensor | None = None
    weight_3: Tensor | None = None
    bias_3: Tensor | None = None

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor | None]]:
        """Each weight that is there with its bias."""
        found = [(self.weight, self.bias)]
        if self.weight_2 is not None:
            found.append((self.weight_2, self.bias_2))
        if self.weight_3 is not None:
            found.append((self.weight_3, self.bias_3))
        return found

    @property
    def products(self) -> int:
        """Columns of x W^T, of all weights."""
        return sum(weight.shape[0] for weight, _ in self.pairs)


class Linear(Op[Arguments]):
    """`linear`."""

    name = "linear"
    types = (torch.float32,)

    def __call__(
        self,
        x: Tensor,
        weight: Tensor | Sequence[Tensor],
        bias: Tensor | Sequence[Tensor | None] | None = None,
        *,
        activation: str = "none",
        glu: bool = False,
        gate: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """y = act(x W^T + bias); with a gate, gate * y; with a residual, residual + that.

        x: (B, S, K), float32 (other types go to PyTorch), any strides. weight: (N, K), as torch.nn.Linear has it, or
        several of these, side by side in the one result, with as many biases or None; up to three are read where they
        are. bias: (N,). activation: "none", "silu", "gelu" (x times the normal distribution function, Hendrycks &
        Gimpel 2016) or "gelu_tanh" (their approximation of it). glu: y = a act(b) instead, where [a, b] are the halves
        of x W^T + bias (Shazeer 2020, "GLU Variants Improve Transformer"), and N is half of W's rows. gate: (B, 1, N)
        or (B, S, N). residual: (B, S, N).

        Returns (B, S, N), contiguous, in x's dtype. Differentiable. Raises ValueError where shapes do not fit and for
        another activation, TypeError for mixed dtypes.

        On a CPU with AMX each number is the sum of three bfloat16, and the products of these that matter are added up:
        the precision is that of float32 (Henry, Tang & Heinecke 2019, https://arxiv.org/abs/1904.06376). Sums that are
        not finite, or below 2^-80, are made once more without terms. What is left: a number below 2^-110 lacks low bits
        where the other factor is above 2^30, so that the sum is not small. FASTDIFF_EXACT=1 turns AMX off. Elsewhere
        PyTorch computes.
        """
        first, first_bias, *more = (weight, bias) if isinstance(weight, Tensor) else _one_by_one(weight, bias)
        return self.run(Arguments(x, first, first_bias, gate, residual, activation, glu, *more))  # type: ignore[arg-type]

    def reference(self, a: Arguments, inplace: bool = False) -> Tensor:
        if a.weight_2 is None:
            y = F.linear(a.x, a.weight, a.bias)
        else:
            y = torch.cat([F.linear(a.x, weight, bias) for weight, bias in a.pairs], -1)
        return self.follow(y, a, inplace)

    @staticmethod
    def follow(y: Tensor, a: Arguments, inplace: bool) -> Tensor:
        """What comes after the product with its bias, in plain PyTorch. inplace: it may overwrite y."""
        value, y = y.chunk(2, -1) if a.glu else (None, y)
        if a.activation == "silu":
            y = F.silu(y, inplace=inplace and value is None)
        elif a.activation != "none":
            y = F.gelu(y, approximate="tanh" if a.activation == "gelu_tanh" else "none")
        if value is not None:
            y = y.mul_(value) if inplace and a.activation != "none" else value * y
        if a.gate is not None:
            if inplace and a.residual is not None:
                return torch.addcmul(a.residual, y, a.gate, out=y)
            y = y.mul_(a.gate) if inplace else a.gate * y
        if a.residual is None:
            return y
        return y.add_(a.residual) if inplace else a.residual + y

    def check(self, a: Arguments) -> None:
        x, pairs = a.x, a.pairs
        if x.ndim != 3:
            raise ValueError(f"x is (B, S, K), not {tuple(x.shape)}")
        if a.activation not in ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}, not {a.activation!r}")
        batch, tokens, inputs = x.shape
        outputs = 0
        for weight, bias in pairs:
            if weight.ndim != 2:
                raise ValueError(f"weight is (N, K), not {tuple(weight.shape)}")
            rows = weight.shape[0]
            check_tensor("weight", weight, x, (rows, inputs))
            if bias is not None:
                check_tensor("bias", bias, x, (rows,))
            outputs += rows
        if a.glu is not False:
            expect(a.glu is True, f"glu must be True or False, got {a.glu!r}")
            expect(outputs % 2 == 0, f"weight must have an even number of rows for a GLU, got {outputs}")
            outputs //= 2
        if a.gate is not None:
            check_tensor("gate", a.gate, x, (batch, 1, outputs), (batch, tokens, outputs))
        if a.residual is not None:
            check_tensor("residual", a.residual, x, (batch, tokens, outputs))

    def limits(self, a: Arguments) -> str | None:
        if not core.has_linear():
            asked = ", as FASTDIFF_EXACT=1 rules AMX out" if choice.exact() else ""
            return f"the C++ kernel needs AMX, and the instruction set in use is {core.isa()}{asked}"
        return None

    def slower_backward(self, a: Arguments) -> str | None:
        return "the backward of the kernel goes through torch's own forward, which a gradient needs anyway"

    def slower(self, a: Arguments) -> str | None:
        if few(a.x.shape[0] * a.x.shape[1], a.weight.shape[1], a.products):
            least = f"{_FEW_ROWS} rows, {_FEW_INPUTS} inputs or {_FEW_OUTPUTS} outputs"
            return f"packing takes longer than it gains with fewer than {least}"
        return None

    def named(self, *values: Any) -> Any:
        """A call of torch.ops.fastdiff.linear; an exported graph may run where there is no AMX."""
        a = Arguments(*values)
        self.check(a)
        return self.reference(a).contiguous() if self.unsupported(a) else self.kernel(a)

    def kernel(self, a: Arguments) -> Tensor:
        x, pairs = dense(a.x), a.pairs
        batch, tokens, inputs = x.shape
        outputs = a.products // (2 if a.glu else 1)
        if len(pairs) > 1 and (any(w.shape[0] % _SIDE for w, _ in pairs[:-1]) or (a.glu and outputs % _SIDE)):
            pairs = _in_one(pairs)
        pairs = [(dense(w), contiguous(b)) for w, b in pairs]
        held: list[Tensor] = []  # copies, until the kernel has run
        out = empty((batch, tokens, outputs), dtype=x.dtype)
        core.linear(
            out.data_ptr(), rows(x, held),
            [(w.data_ptr(), address(b), w.stride(0), w.shape[0]) for w, b in pairs], rows(a.gate, held),
            rows(a.residual, held), a.activation, a.glu, (batch, tokens, inputs, outputs), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def fake(self, a: Arguments) -> Tensor:
        return a.x.new_empty((*a.x.shape[:2], a.products // 2 if a.glu else a.products))


def few(tokens: int, inputs: int, outputs: int) -> bool:
    """Whether a product is too small for its factors to be packed."""
    return tokens < _FEW_ROWS or inputs < _FEW_INPUTS or outputs < _FEW_OUTPUTS


def _one_by_one(weight: Sequence[Tensor], bias: Any) -> list[Any]:
    """At most three weights, each followed by its bias."""
    weights = several("weight", weight)
    if bias is not None and not isinstance(bias, (Tensor, list, tuple)):
        raise TypeError(f"bias must be as many tensors or None as weights, {len(weights)}, got {type(bias).__name__}")
    biases = [None] * len(weights) if bias is None else list(bias)
    for place, each in enumerate(biases):
        if each is not None and not isinstance(each, Tensor):
            raise TypeError(f"bias[{place}] must be a tensor or None, got {type(each).__name__}")
    expect(len(weights) == len(biases), f"bias must be as many as weights, {len(weights)}, got {len(biases)}")
    pairs = list(zip(weights, biases))
    return [each for pair in (pairs if len(pairs) <= 3 else _in_one(pairs)) for each in pair]


def _in_one(pairs: list[tuple[Tensor, Tensor | None]]) -> list[tuple[Tensor, Tensor | None]]:
    """The same as a single weight and bias."""
    whole = [w.new_zeros(w.shape[:1]) if b is None else b for w, b in pairs]
    return [(torch.cat([w for w, _ in pairs]), None if all(b is None for _, b in pairs) else torch.cat(whole))]


linear = Linear()
