"""Launches on several streams at once: what a launch is given is its call's own, whatever is kept of calls before. So a
graph too replays with memory of its own. The GPU is a stand-in, and all memory of earlier calls stays in use."""

import gc

import pytest
import torch
from launches import as_on_gpu, half, launches

triton = pytest.importorskip("triton")

from fastdiff import ops  # noqa: E402
from fastdiff.kernels.add_group_norm_silu import add_group_norm_silu  # noqa: E402
from fastdiff.kernels.attention import hopper  # noqa: E402
from fastdiff.kernels.attention.backward import attention_backward  # noqa: E402
from fastdiff.kernels.attention.few_keys import FewKeysForward  # noqa: E402
from fastdiff.kernels.conv2d import conv2d  # noqa: E402
from fastdiff.kernels.linear import linear  # noqa: E402
from fastdiff.kernels.linear_combine.forward import _unused  # noqa: E402
from fastdiff.kernels.pointwise import add_bias, gated, interleave, phases  # noqa: E402
from fastdiff.runtime import triton as triton_kernels  # noqa: E402

pytestmark = pytest.mark.skipif(triton_kernels.INTERPRETED, reason="Triton interprets in this process")


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def gradients(op):
    def compute(gradient, kept, *arguments):
        return op.triton_backward(op.Arguments(*arguments), [gradient], [] if kept is None else [kept])

    return compute


def prepared(kind):
    """A launch that is made for the first call and kept, as plans keep it."""
    made = []

    def call(*arguments):
        made[:] = made or [kind(*arguments)]
        return made[0](*arguments)

    return call


ROW, CHANNELS = half(2, 1, 64), half(64)
IMAGE = half(2, 64, 8, 8)
Q, LONG, FEW = half(2, 4, 16, 40), half(1, 1, 4096, 64), half(1, 1, 16, 64)
# A call, and functions that make its inputs.
CALLS = {
    "ada_layer_norm": (as_on_gpu(ops.ada_layer_norm), half(2, 4, 64), ROW, ROW),
    "its gradients": (
        gradients(ops.ada_layer_norm),
        half(2, 4, 64),
        None,
        half(2, 4, 64),
        ROW,
        ROW,
        CHANNELS,
        CHANNELS,
    ),
    "residual_ada_layer_norm": (as_on_gpu(ops.residual_ada_layer_norm), half(2, 4, 64), half(2, 4, 64), ROW, ROW, ROW),
    "group_norm_silu, one launch": (as_on_gpu(ops.group_norm_silu), IMAGE, 32, CHANNELS, CHANNELS),
    "group_norm_silu, two launches": (as_on_gpu(ops.group_norm_silu), half(1, 64, 128, 128), 32, CHANNELS, CHANNELS),
    "group_norm_silu, over rows": (as_on_gpu(ops.group_norm_silu), last(half(1, 64, 128, 128)), 32, CHANNELS, CHANNELS),
    "gradients of group_norm_silu": (gradients(ops.group_norm_silu), IMAGE, None, IMAGE, 32, CHANNELS, CHANNELS),
    "add_group_norm_silu": (add_group_norm_silu, last(half(1, 64, 64, 64)), 32, CHANNELS),
    "attention": (as_on_gpu(ops.attention), Q, Q, Q),
    "attention in splits": (as_on_gpu(ops.attention), FEW, LONG, LONG),
    "attention of few keys": (prepared(FewKeysForward), Q, half(2, 4, 24, 40), half(2, 4, 24, 40)),
    "attention for Hopper": (prepared(hopper.HopperForward), *[half(1, 2, 256, 64)] * 3),
    "gradients of attention": (attention_backward, Q, Q, Q, Q, Q, torch.randn(2, 4, 16)),
    "linear_combine": (as_on_gpu(ops.linear_combine), [[0.5, 0.25]], [ROW, ROW]),
    "conv2d": (conv2d, last(half(1, 64, 8, 8)), last(half(64, 64, 3, 3)), CHANNELS),
    "linear": (linear, half(1, 256, 64), half(64, 64), CHANNELS),
    "linear of few rows": (linear, half(1, 2, 64), half(64, 64), CHANNELS),
    "add_bias": (add_bias, last(IMAGE), CHANNELS),
    "gated": (lambda x: gated(x, "gelu"), half(1, 16, 64)),
    "summed weights": (phases, last(half(8, 64, 3, 3))),
    "interleaved phases": (interleave, last(half(4, 64, 9, 9)), None),
}


def copied(value):
    """Inputs of another call like this one."""
    if isinstance(value, list) and torch.is_tensor(value[0]):
        return [each.clone() for each in value]
    return value.clone() if torch.is_tensor(value) else value


class InFlight:
    """Holds the memory that launches are given, as a stream holds it until it has run them: by call."""

    def __init__(self):
        self.streams, self.memory, self._held = [], [], []

    def call(self):
        self.streams.append(set())
        self.memory.append(set())

    def append(self, arguments):
        self.streams[-1].add(arguments[3])
        addresses = {address for address in map(_address, arguments[9:]) if address}
        for tensor in [x for x in gc.get_objects() if type(x) is torch.Tensor and x.device.type == "cpu"]:
            start = tensor.untyped_storage().data_ptr()
            inside = {a for a in addresses if start <= a < start + tensor.untyped_storage().nbytes()}
            if inside:
                self._held.append(tensor)
                self.memory[-1].add(start)
                addresses -= inside
        assert not addresses, "a pointer to memory that nobody holds"

    def clear(self):
        pass


def _address(value):
    """0 for what is no pointer, or points nowhere."""
    value = getattr(value, "base", value)  # of a tensor's descriptor
    if torch.is_tensor(value):
        return value.data_ptr()
    return value if type(value) is int and value > 1 << 32 else 0


@pytest.mark.parametrize("name", CALLS)
def test_calls_in_flight_share_no_memory(monkeypatch, name):
    if name == "attention for Hopper" and hopper.missing():
        pytest.skip(str(hopper.missing()))
    call, *inputs = CALLS[name]
    with launches(monkeypatch) as launched, torch.no_grad():
        flight = InFlight()
        monkeypatch.setattr(launched.device, "launched", lambda *arguments: flight.append(arguments))
        streams = [7, 8, 7, 9, 8]
        for stream in streams:
            launched.device.streams |= {-1: stream, None: stream}
            flight.call()
            call(*map(copied, inputs))
    assert flight.streams == [{stream} for stream in streams]
    # The one number is written where a result is not finite, and read by nobody.
    written = {_unused(torch.device("cpu"))[1].untyped_storage().data_ptr()} if name == "linear_combine" else set()
    for number, memory in enumerate(flight.memory):
        assert memory - written
        for other, stream in zip(flight.memory[:number], streams):
            shared = memory & other - written
            # Coefficients on the device are kept by their values, for one stream, and only read.
            assert len(shared) <= (name == "linear_combine" and stream == streams[number]), shared
