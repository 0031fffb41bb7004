"""What is added after a convolution, and the group norm of the sum with SiLU: h = x + bias + embedding of the time +
residual, z = act(GN(h)). Within a residual block and from one block to the next: Ho et al. 2020 (DDPM), Appendix B."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.ops.calls import Plan
from fastdiff.ops.group_norm_silu import Arguments as Norm
from fastdiff.ops.group_norm_silu import group_norm_silu
from fastdiff.ops.op import Op
from fastdiff.ops.tensors import check_tensor, layout


class Arguments(NamedTuple):
    """The signature, once."""

    x: Tensor
    num_groups: int
    conv_bias: Tensor | None = None
    channel_bias: Tensor | None = None
    residual: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str = "silu"


class AddGroupNormSilu(Op[Arguments]):
    """`add_group_norm_silu`."""

    name = "add_group_norm_silu"
    results = "(Tensor, Tensor)"

    def __call__(
        self,
        x: Tensor,
        num_groups: int,
        conv_bias: Tensor | None = None,
        channel_bias: Tensor | None = None,
        residual: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: str | None = "silu",
    ) -> tuple[Tensor, Tensor]:
        """h = x + conv_bias + channel_bias + residual, and z = group_norm_silu(h), of h as it is returned.

        x: (N, C, ...), a convolution's result without its bias, float32, bfloat16, float16 or float64. conv_bias: (C,).
        channel_bias: (N, C) or (N, C, 1, ...), an embedding of the time for example. residual: of x's shape. Each is
        optional. num_groups, weight, bias, eps, scale, shift, activation: as of `group_norm_silu`. The sum is in
        float32 (float64 for float64) and rounded once by the kernel, which is on a GPU and takes channels-last maps.

        Returns (h, z), each of x's shape, dtype and layout, as of `group_norm_silu`. Differentiable. Raises ValueError
        where shapes do not fit or for an unknown activation, TypeError for mixed dtypes.
        """
        return self.run(
            Arguments(
                x, num_groups, conv_bias, channel_bias, residual, weight, bias, eps, scale, shift, activation or "none"
            )
        )

    def reference(self, a: Arguments, inplace: bool = False) -> tuple[Tensor, Tensor]:
        """PyTorch's additions, and group_norm_silu as it is chosen: PyTorch's under `fastdiff.use("reference")`."""
        h = a.x
        ones = [1] * (a.x.ndim - 2)
        for added, shape in ((a.conv_bias, (1, -1, *ones)), (a.channel_bias, (*a.x.shape[:2], *ones))):
            if added is not None:
                h = h + added.reshape(shape)
        if a.residual is not None:
            h = h + a.residual
        h = h.clone() if h is a.x else h
        h = h.contiguous(memory_format=layout(a.x))
        return h, self.normalized(a, h)

    def check(self, a: Arguments) -> None:
        group_norm_silu.check(_norm(a, a.x))
        samples, channels, *pixels = a.x.shape
        flat = (samples, channels)
        if a.conv_bias is not None:
            check_tensor("conv_bias", a.conv_bias, a.x, (channels,))
        if a.channel_bias is not None:
            check_tensor("channel_bias", a.channel_bias, a.x, flat, (*flat, *[1] * len(pixels)))
        if a.residual is not None:
            check_tensor("residual", a.residual, a.x, tuple(a.x.shape))

    def limits(self, a: Arguments) -> str | None:
        return "it has no C++ kernel; conv2d and group_norm_silu do it"

    def fake(self, a: Arguments) -> tuple[Tensor, Tensor]:
        h, z = (torch.empty_like(a.x, memory_format=layout(a.x)) for _ in range(2))
        return h, z

    def triton_limits(self, a: Arguments) -> str | None:
        from fastdiff.kernels.add_group_norm_silu.forward import plan_for

        if layout(a.x) is torch.contiguous_format:
            return "Triton's kernel takes channels-last maps; of others PyTorch makes the sum"
        if a.x.shape[0] and a.x.numel() // a.x.shape[0] >= 2**31:
            return "Triton's kernel takes samples of less than 2^31 numbers"
        if a.x.numel() and plan_for(self.flat(a).x, a.num_groups) is None:
            return f"Triton's kernel has no plan for {a.num_groups} groups of {a.x.shape[1]} channels"
        return None

    def plan(self, a: Arguments, cut: Any = None) -> Plan:
        """cut: of kernels.group_norm_silu.rows_plan; by shape and device if there is none."""
        from fastdiff.kernels.add_group_norm_silu import Forward

        forward = Forward(
            *self.flat(a)[:8], scale=a.scale, shift=a.shift, activation=a.activation, cut=cut
        )  # fmt: skip

        def run(a: Arguments) -> tuple[Tensor, Tensor]:
            x, _, conv_bias, channel_bias, residual, weight, bias, _, scale, shift, _ = self.flat(a)
            found = forward(x, conv_bias, channel_bias, residual, weight, bias, scale, shift)
            return found if x is a.x else tuple(each.unflatten(3, a.x.shape[3:]) for each in found)

        return run

    @staticmethod
    def normalized(a: Arguments, h: Tensor) -> Tensor:
        """The norm of the sum, by group_norm_silu as it is chosen; in PyTorch for types that its kernels do not take,
        which an oracle has though kernels be insisted on."""
        norm = _norm(a, h)
        return group_norm_silu.run(norm) if h.dtype in group_norm_silu.types else group_norm_silu.reference(norm)

    def flat(self, a: Arguments) -> Arguments:
        """The arguments with maps in four dimensions where they have five."""
        if a.x.ndim != 5:
            return a
        return a._replace(x=a.x.flatten(3), residual=None if a.residual is None else a.residual.flatten(3))


def _norm(a: Arguments, h: Tensor) -> Norm:
    return Norm(h, a.num_groups, a.weight, a.bias, a.eps, a.scale, a.shift, a.activation)


add_group_norm_silu = AddGroupNormSilu()
