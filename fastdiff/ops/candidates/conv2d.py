"""Of convolutions: cuDNN's product with one kernel of ours for all that follows; upsampling by four 2x2 convolutions;
PyTorch's kernels in the layout that x has, and channels-last, which tensor cores want."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.candidates.shared import Found, beyond_pointwise, torch_candidate
from fastdiff.ops.conv2d_weights import summed
from fastdiff.runtime.candidates import Candidate
from fastdiff.runtime.dispatcher import is_memory

_SUM, _PHASES = "cudnn, sum by triton", "cudnn by phases"


def find(op: Any, a: Any) -> Found:
    """cuDNN's kernels in halves add no bias: PyTorch adds it, and all else that follows, in a pass over memory each.
    Channels-last is a candidate where x is not, and it is of a half type."""
    found = [torch_candidate(op)]
    absent: dict[str, str] = {}
    if _is_followed(a):
        if (reason := beyond_pointwise(a.x)) is not None:
            absent[_SUM] = reason
        else:
            found.insert(0, Candidate(_SUM, lambda a: _summed(op, a)))
            if _has_phases(a):
                found.insert(0, Candidate(_PHASES, lambda a: _by_phases(op, a)))
    if a.x.element_size() == 2 and not _is_channels_last(a.x):
        found.append(Candidate("torch channels-last", lambda a: op.plainly(_channels_last(a), True)))
    return Found(found, absent=absent)


def _is_followed(a: Any) -> bool:
    return a.scale == 1 and not (a.bias is a.channel_bias is a.residual is None and a.activation is None)


def _has_phases(a: Any) -> bool:
    """Whether an upsampled image can be convolved by four 2x2 kernels, without being made: 16 products of a pixel of x
    instead of 36. The kernels are sums of weights, kept with the weight. With the rounding of the sums the error in
    halves is 1.15 to 1.22 times PyTorch's, which rounds once more for the bias; without a bias it would be 1.41 times.
    """
    size = (a.upsample, a.stride, a.padding, *a.weight.shape[2:])
    dense = a.weight.is_contiguous() or _is_channels_last(a.weight)
    return size == (2, 1, 1, 3, 3) and a.bias is not None and a.skip is None and a.x.element_size() == 2 and dense


def _summed(op: Any, a: Any) -> Tensor:
    x = a.x if a.skip is None else torch.cat((a.x, a.skip), 1)
    x = x if a.upsample == 1 else F.interpolate(x, scale_factor=float(a.upsample), mode="nearest")
    return _add(op, F.conv2d(x, a.weight, None, a.stride, a.padding), a, a.bias)


def _by_phases(op: Any, a: Any) -> Tensor:
    from fastdiff.kernels.pointwise import interleave, phases

    if not (is_memory(a.x) and is_memory(a.weight) and is_memory(a.bias)):
        return op.plainly(a, True)
    x = a.x.contiguous(memory_format=torch.channels_last)
    y = F.conv2d(x, summed(a.weight, phases), padding=1).contiguous(memory_format=torch.channels_last)
    return _add(op, interleave(y, a.bias), a, None)


def _add(op: Any, y: Tensor, a: Any, bias: Tensor | None) -> Tensor:
    """What follows the product, over y."""
    from fastdiff.kernels.pointwise import add_bias

    if bias is a.channel_bias is a.residual is None and a.activation is None:
        return y
    tensors = (y, bias, a.channel_bias, a.residual)
    if (y.is_contiguous() or _is_channels_last(y)) and all(t is None or is_memory(t) for t in tensors):
        return add_bias(*tensors, a.activation)
    return op.follow(y if bias is None else y.add_(bias[:, None, None]), a, inplace=True)


def _channels_last(a: Any) -> Any:
    def last(image: Tensor | None) -> Tensor | None:
        return None if image is None else image.contiguous(memory_format=torch.channels_last)

    return a._replace(x=last(a.x), skip=last(a.skip), weight=last(a.weight), residual=last(a.residual))


def _is_channels_last(image: Tensor) -> bool:
    return image.is_contiguous(memory_format=torch.channels_last)
