"""2-D convolution, 3x3 kernels by Winograd's algorithm: 36 multiplications for 4x4 results instead of 144. Lavin & Gray
2016, "Fast Algorithms for Convolutional Neural Networks", Section 4; Winograd 1980. 1x1 kernels are linear layers of
pixels, by linear's kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.errors import expect, unknown
from fastdiff.ops.conv2d_algorithms import ALGORITHMS, Problem, choose
from fastdiff.ops.conv2d_weights import Packed, packed
from fastdiff.ops.given import several
from fastdiff.ops.linear import Arguments as Layer
from fastdiff.ops.linear import linear
from fastdiff.ops.op import Gradients, Op, Tensors
from fastdiff.ops.tensors import address, check_tensor, contiguous, is_channels_last
from fastdiff.runtime import choice
from fastdiff.runtime.memory import empty
from fastdiff.runtime.native import core

_ACTIVATIONS = ("silu",)
_OUT_OF_RANGE = "the weight has numbers beyond 2^50, an infinity or NaN, or a row of numbers below 2^-50"
_FEW_CHANNELS = "with few channels the transforms cost more than the products that they spare"
_FEW_PRODUCTS = 1e8  # of two numbers: with fewer torch's 1x1 convolution is as fast, and its calls are shorter


class Arguments(NamedTuple):
    """The signature, once. skip: what is concatenated to x along the channels. algorithm: of conv2d_algorithms."""

    x: Tensor
    skip: Tensor | None
    weight: Tensor
    bias: Tensor | None = None
    stride: int = 1
    padding: int = 1
    residual: Tensor | None = None
    channel_bias: Tensor | None = None
    activation: str | None = None
    upsample: int = 1
    scale: float = 1.0
    algorithm: str | None = None

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        """(N, K, H', W')."""
        down, across = (
            (self.upsample * size + 2 * self.padding - kernel) // self.stride + 1
            for size, kernel in zip(self.x.shape[2:], self.weight.shape[2:])
        )
        return self.x.shape[0], self.weight.shape[0], down, across


class Conv2d(Op[Arguments]):
    """`conv2d`."""

    name = "conv2d"
    types = (torch.float32,)

    def __call__(
        self,
        x: Tensor | Sequence[Tensor],
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int = 1,
        padding: int = 1,
        residual: Tensor | None = None,
        channel_bias: Tensor | None = None,
        activation: str | None = None,
        upsample: int = 1,
        scale: float = 1.0,
    ) -> Tensor:
        """scale * activation(convolution(x) + bias + channel_bias + residual).

        x: (N, C, H, W), or several of them that are concatenated along C; two are read where they are. upsample: x is
        first made that many times as large, nearest neighbour, which is never in memory. weight: (K, C, kh, kw). bias:
        (K,). residual: of the result's shape. channel_bias: (N, K) or (N, K, 1, 1), a time embedding for example.
        activation: None or "silu". All of one dtype: float32, bfloat16, float16 or float64; the kernels take float32.

        Returns (N, K, H', W'), from the kernel in channels-last strides; x and residual are best channels-last as well,
        for else they are copied. Differentiable. Raises ValueError where shapes do not fit, TypeError for mixed dtypes.

        What the kernel makes of a weight is kept as long as the weight lives, and made again when the weight changes.
        A change through `.data` is seen if it changes a whole row or column of the weight; `fastdiff.refresh` is for
        others. 4x4 results are computed together, from 6x6 pixels. Where these differ more than eightfold in size
        (their root mean square over the channels), or hold an infinity or NaN, the 16 results are computed directly:
        each is as good as PyTorch's for its size. A weight with an infinity, NaN or numbers beyond 2^50 goes to
        PyTorch. With FASTDIFF_EXACT=1 all 3x3 kernels go there.
        """
        x, skip = _images(x)
        if isinstance(channel_bias, Tensor) and channel_bias.ndim == 4:
            channel_bias = channel_bias.flatten(1)
        return self.run(
            Arguments(x, skip, weight, bias, stride, padding, residual, channel_bias, activation, upsample, scale)
        )

    def reference(self, a: Arguments, inplace: bool = False) -> Tensor:
        x = a.x if a.skip is None else torch.cat((a.x, a.skip), 1)
        if a.upsample != 1:
            x = F.interpolate(x, scale_factor=float(a.upsample), mode="nearest")
        return self.follow(F.conv2d(x, a.weight, a.bias, a.stride, a.padding), a, inplace)

    @staticmethod
    def follow(y: Tensor, a: Arguments, inplace: bool) -> Tensor:
        """What comes after the convolution with its bias, in plain PyTorch. inplace: it may overwrite y."""
        for added in (None if a.channel_bias is None else a.channel_bias[:, :, None, None], a.residual):
            if added is not None:
                y = y.add_(added) if inplace else y + added
        if a.activation == "silu":
            y = F.silu(y, inplace=inplace)
        return y if a.scale == 1 else a.scale * y

    def check(self, a: Arguments) -> None:
        x, weight = a.x, a.weight
        if x.ndim != 4:
            raise ValueError(f"x must be (N, C, H, W), got {tuple(x.shape)}")
        if a.stride < 1 or a.padding < 0 or a.upsample < 1:
            raise ValueError(
                f"stride and upsample must be at least 1 and padding 0, got stride={a.stride}, upsample={a.upsample}, "
                f"padding={a.padding}"
            )
        if isinstance(a.upsample, float):  # PyTorch would take it
            raise TypeError(f"upsample must be a whole number, got {a.upsample}")
        if a.activation is not None and a.activation not in _ACTIVATIONS:
            raise unknown("activation", a.activation, _ACTIVATIONS)
        if a.algorithm is not None and a.algorithm not in ALGORITHMS:
            raise unknown("algorithm", a.algorithm, ALGORITHMS)
        batch, channels, height, width = x.shape
        if a.skip is not None:
            expect(a.skip.ndim == 4, f"x must be (N, C, H, W), got also {tuple(a.skip.shape)}")
            check_tensor("the second x", a.skip, x, (batch, a.skip.shape[1], height, width))
            channels += a.skip.shape[1]
        if weight.ndim != 4:
            raise ValueError(f"weight must be (K, C, kh, kw), got {tuple(weight.shape)}")
        check_tensor("weight", weight, x, (weight.shape[0], channels, *weight.shape[2:]))
        shape = a.result_shape
        if min(shape[2:]) <= 0:
            raise ValueError(f"x {tuple(x.shape)} has fewer pixels than weight {tuple(weight.shape)}")
        if a.bias is not None:
            check_tensor("bias", a.bias, x, shape[1:2])
        if a.channel_bias is not None:
            check_tensor("channel_bias", a.channel_bias, x, shape[:2])
        if a.residual is not None:
            check_tensor("residual", a.residual, x, shape)

    def limits(self, a: Arguments) -> str | None:
        if is_pointwise(a):
            return linear.limits(_as_linear(a))
        if a.weight.shape[2:] != (3, 3) or a.stride != 1:
            size = "x".join(map(str, a.weight.shape[2:]))
            return f"the C++ kernel is for 3x3 and stride 1, not {size} and stride {a.stride}"
        if choice.exact():
            return "FASTDIFF_EXACT=1 rules out Winograd's algorithm, by which the C++ kernel computes"
        if a.upsample not in (1, 2):
            return f"the C++ kernel makes x once or twice as large, not {a.upsample} times"
        return None

    def slower_backward(self, a: Arguments) -> str | None:
        if torch.compiler.is_compiling():
            return "a gradient is wanted, and of two kernels in a compiled graph one may not be needed"
        why = self.undifferentiated(a)
        if why is None and (a.weight.shape[0] < 64 or a.weight.shape[1] < 32):
            why = _FEW_CHANNELS
        return None if why is None else f"a gradient is wanted: {why}"

    def slower(self, a: Arguments) -> str | None:
        x, weight = a.x, a.weight
        if is_pointwise(a):
            if x.shape[0] * x.shape[2] * x.shape[3] * weight.numel() < _FEW_PRODUCTS:
                return f"a 1x1 convolution of fewer than {_FEW_PRODUCTS:.0e} products gains nothing"
            return linear.slower(_as_linear(a))
        if not torch.compiler.is_compiling() and weight.is_inference():
            return "the weight is an inference tensor, whose changes cannot be seen: nothing made of it could be kept"
        if (x.shape[1] < 64 and a.skip is None) or weight.shape[0] < 32:
            return _FEW_CHANNELS
        return None

    def named(self, *values: Any) -> Any:
        """A call of torch.ops.fastdiff.conv2d; an exported graph may run where FASTDIFF_EXACT=1."""
        a = Arguments(*values)
        self.check(a)
        if choice.exact() and self.limits(a):
            return self.reference(a).contiguous(memory_format=torch.channels_last)
        return super().named(*values)

    def kernel(self, a: Arguments) -> Tensor:
        if is_pointwise(a):
            batch, _, height, width = a.x.shape
            return linear.kernel(_as_linear(a)).view(batch, height, width, a.weight.shape[0]).permute(0, 3, 1, 2)
        forms = packed(a.weight)
        if not forms.in_range(a.weight):
            choice.note(self.name, _OUT_OF_RANGE)
            return self.reference(a).contiguous(memory_format=torch.channels_last)
        return self._by_winograd(a, forms)

    def _by_winograd(self, a: Arguments, forms: Packed) -> Tensor:
        """By the C++ kernel. forms: of the weight, which is in range."""
        x, weight = a.x, a.weight
        shape = batch, out_channels, height, width = a.result_shape
        out = empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        if not out.numel():
            return out
        images = [_dense(image) for image in ((x,) if a.skip is None else (x, a.skip))]
        residual = None if a.residual is None else _dense(a.residual)
        bias, channel_bias = contiguous(a.bias), a.channel_bias
        if channel_bias is not None and channel_bias.stride(1) != 1:
            channel_bias = channel_bias.contiguous()
        threads = torch.get_num_threads()
        problem = Problem(batch, weight.shape[1], out_channels, height, width, a.upsample, threads, core.isa())

        def run(algorithm: str) -> None:
            read = 0 if algorithm == "winograd-amx" else forms.get(weight, algorithm).data_ptr()
            core.conv2d(
                [_image(image) for image in images],
                (batch, a.upsample * x.shape[2], a.upsample * x.shape[3], a.upsample - 1, a.padding, out_channels,
                 height, width),
                read, forms.filters(weight), algorithm, address(bias), address(channel_bias),
                0 if channel_bias is None else channel_bias.stride(0), _image(residual), a.activation == "silu",
                a.scale, out.data_ptr(), threads,
            )  # fmt: skip

        chosen = a.algorithm
        if chosen is None:
            chosen, measured = choose(problem, run)
            if measured:
                forms.keep_only(chosen)
        run(chosen)
        return out

    def undifferentiated(self, a: Arguments) -> str | None:
        if a.activation is not None:
            return f"backward needs what {a.activation} is of, which the kernel does not keep"
        if is_pointwise(a):
            return "a linear layer of pixels and its gradients are the same products"
        return self.limits(a) or ("there is no kernel for padding above 2" if a.padding > 2 else None)

    def empty_gradients(self, a: Arguments) -> list[Tensor | None]:
        images = [None if t is None else torch.empty_like(t, memory_format=torch.channels_last) for t in (a.x, a.skip)]
        return [*images, *super().empty_gradients(a)[2:]]

    def kernel_backward(self, a: Arguments, gradients: Tensors, kept: Tensors) -> Gradients:
        like = self.empty_gradients(a)
        found = self.wanted_backward(a, gradients, kept, [t is not None for t in like])
        return [None if t is None or wanted is None else wanted.copy_(t) for t, wanted in zip(found, like)]

    def wanted_backward(self, a: Arguments, gradients: Tensors, kept: Tensors, wanted: Sequence[bool]) -> Gradients:
        """Of x by the same algorithm, as that is a convolution as well; of the weight by PyTorch."""
        gradient = _dense(gradients[0] if a.scale == 1 else a.scale * gradients[0])
        of_x, of_skip, of_weight, of_bias, of_residual, of_channel_bias = wanted
        x = skip = weight = bias = None
        if of_weight:
            image = a.x if a.skip is None else torch.cat((a.x, a.skip), 1)
            image = image if a.upsample == 1 else F.interpolate(image, scale_factor=float(a.upsample), mode="nearest")
            _, weight, bias = torch.ops.aten.convolution_backward(
                gradient, image, a.weight, a.weight.shape[:1], [1, 1], [a.padding, a.padding], [1, 1], False, [0, 0], 1,
                (False, True, of_bias),
            )  # fmt: skip
        elif of_bias:
            bias = gradient.sum((0, 2, 3))
        channel_bias = gradient.sum((2, 3)) if of_channel_bias else None
        if of_x or of_skip:
            x, skip = self._gradients_of_images(a, gradient)
        return x, skip, weight, bias, gradient if of_residual else None, channel_bias

    def _gradients_of_images(self, a: Arguments, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of x and of what is concatenated to it: the convolution of the gradient with each kernel turned by half a
        circle, from the output channels to the input channels."""
        turned = Arguments(gradient, None, a.weight.detach().flip(2, 3).transpose(0, 1), padding=2 - a.padding)
        forms = Packed()
        if forms.in_range(turned.weight):
            found = self._by_winograd(turned, forms)
        else:
            choice.note(self.name, _OUT_OF_RANGE)
            found = self.reference(turned).contiguous(memory_format=torch.channels_last)
        if a.upsample == 2:  # each pixel was read four times
            found = F.avg_pool2d(found, 2, divisor_override=1)
        if a.skip is None:
            return found, None
        x, skip = found.split((a.x.shape[1], a.skip.shape[1]), 1)
        return x, skip

    def fake(self, a: Arguments) -> Tensor:
        return torch.empty(a.result_shape, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)


def _images(x: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """x and what is concatenated to it, where the kernel can read that; else both in one."""
    if isinstance(x, Tensor):
        return x, None
    x = several("x", x)
    if len(x) == 1:
        return x[0], None
    if len(x) == 2 and x[0].ndim == 4 and x[0].shape[1] % core.CONV2D_CHANNEL_BLOCK == 0:
        return x[0], x[1]
    return torch.cat(tuple(x), 1), None


def is_pointwise(a: Arguments) -> bool:
    """Whether this is a linear layer of pixels: 1x1, and the channels of each pixel side by side."""
    if a.weight.shape[2:] != (1, 1) or a.stride != 1 or a.padding != 0 or a.upsample != 1 or a.scale != 1:
        return False
    if a.skip is not None or a.channel_bias is not None or (a.activation is not None and a.residual is not None):
        return False  # linear activates before it adds the residual
    return is_channels_last(a.x) and (a.residual is None or is_channels_last(a.residual))


def _as_linear(a: Arguments) -> Layer:
    """The linear layer of a pointwise convolution, on views."""
    added = None if a.residual is None else _pixels(a.residual)
    return Layer(_pixels(a.x), a.weight.flatten(1), a.bias, None, added, a.activation or "none")


def _pixels(image: Tensor) -> Tensor:
    """(N, H W, C), a view."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def _dense(image: Tensor) -> Tensor:
    """The image with contiguous channels."""
    return image if image.stride(1) == 1 else image.contiguous(memory_format=torch.channels_last)


def _image(image: Tensor | None) -> tuple[int, int, int, int, int]:
    """(address, channels, strides of a sample, a row and a pixel)."""
    if image is None:
        return 0, 0, 0, 0, 0
    return image.data_ptr(), image.shape[1], image.stride(0), image.stride(2), image.stride(3)


conv2d = Conv2d()
