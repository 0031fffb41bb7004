"""What reaches the driver of a GPU from calls of operators: the same as by Triton's own path, however often and from
wherever a call is made. The GPU is a stand-in, for which kernels are compiled; nothing is computed."""

import functools
import gc
import random
import threading
import weakref

import pytest
import torch
from launches import OnDevice, as_on_gpu, half, launches

triton = pytest.importorskip("triton")

from fastdiff import ops  # noqa: E402
from fastdiff.explain import explain  # noqa: E402
from fastdiff.kernels import launching  # noqa: E402
from fastdiff.kernels.ada_layer_norm.forward import Forward, ada_layer_norm_kernel  # noqa: E402
from fastdiff.kernels.launching import Launch  # noqa: E402
from fastdiff.ops import calls  # noqa: E402
from fastdiff.runtime import choice  # noqa: E402
from fastdiff.runtime import triton as triton_kernels  # noqa: E402

pytestmark = pytest.mark.skipif(triton_kernels.INTERPRETED, reason="Triton interprets in this process")
HOOKS = hasattr(triton, "knobs") and hasattr(triton.knobs.runtime.launch_enter_hook, "calls")


@pytest.fixture
def launched(monkeypatch):
    with launches(monkeypatch) as found:
        yield found


def normal(launches, tensors):
    """Arguments of launches that do not depend on where results lie: pointers as places in `tensors`, or "new"."""
    places = {t.data_ptr(): index for index, t in enumerate(tensors)}

    def pointer(value):
        address = value.data_ptr() if isinstance(value, torch.Tensor) else value
        return places.get(address, "new") if isinstance(address, int) and address > 1 << 20 else address

    # the grid, stream, function and metadata; hooks and what they are told are empty; then the kernel's parameters
    return [(*launch[:6], *map(pointer, launch[9:])) for launch in launches]


def calls_of_each_op():
    x, row, vector, image = half(2, 4, 64), half(2, 1, 64), half(64), half(2, 64, 8, 8)
    q = half(2, 16, 4, 40).transpose(1, 2)
    yield ops.ada_layer_norm, (x, row, row), dict(weight=vector, bias=vector)
    yield ops.residual_ada_layer_norm, (x, x, row, row, row), {}
    yield ops.group_norm_silu, (image, 32, vector, vector), {}
    yield ops.group_norm_silu, (half(1, 64, 128, 128), 32, vector, vector), dict(activation=None)
    yield ops.attention, (q, q, q), {}
    yield ops.attention, (q, q, q), dict(mask=torch.ones(16, 16, dtype=torch.bool), return_maps=True)
    few, many = half(1, 1, 16, 64), half(1, 1, 4096, 64)
    yield ops.attention, (few, many, many), {}  # in splits
    yield ops.linear_combine, ([[0.5, 0.25], [1.0, 2.0]], [x, half(2, 4, 64)]), {}


@pytest.mark.parametrize("number", range(8))
def test_the_driver_gets_what_triton_would_give_it(launched, monkeypatch, number):
    op, arguments, named = list(calls_of_each_op())[number]
    op = as_on_gpu(op)
    values = [v for value in (*arguments, *named.values()) for v in (value if isinstance(value, list) else [value])]
    tensors = [t for t in values if isinstance(t, torch.Tensor)]
    by_triton = launched.by(lambda: op(*arguments, **named))
    at_once = [launched.by(lambda: op(*arguments, **named)) for _ in range(2)]
    assert by_triton
    for again in at_once:
        assert normal(again, tensors) == normal(by_triton, tensors)
        # past Triton's own path, in which pointers are tensors until the launcher
        assert all(launch[6:9] == (None, None, None) for launch in again)
        assert not any(isinstance(value, torch.Tensor) for launch in again for value in launch)
    assert all(any(isinstance(value, torch.Tensor) for value in launch) for launch in by_triton)


def gradients_of_each_op():
    x, row, vector, image = half(2, 4, 64), half(2, 1, 64), half(64), half(2, 64, 8, 8)
    q = half(2, 16, 4, 40).transpose(1, 2)
    out, lse = half(2, 4, 16, 40), torch.randn(2, 4, 16)
    yield ops.ada_layer_norm, (x, row, row, vector, vector), [x], []
    yield ops.residual_ada_layer_norm, (x, x, row, row, row), [x, x], [x]
    yield ops.group_norm_silu, (image, 32, vector, vector), [image], []
    yield ops.attention, (q, q, q), [out], [out, lse]
    yield ops.attention, (q, half(2, 4, 512, 40), half(2, 4, 512, 40)), [out], [out, lse]


@pytest.mark.parametrize("number", range(5))
def test_gradients_are_launched_past_tritons_own_path(launched, number):
    op, arguments, gradients, kept = list(gradients_of_each_op())[number]
    if op is ops.attention:
        from fastdiff.kernels.attention.backward import attention_backward

        compute = functools.partial(attention_backward, gradients[0], *arguments, *kept)
    else:
        compute = functools.partial(op.triton_backward, op.Arguments(*arguments), gradients, kept)
    tensors = [*arguments, *gradients, *kept]
    launching._launches.clear()
    by_triton = launched.by(compute)
    tensors = [t for t in tensors if isinstance(t, torch.Tensor)]
    assert by_triton
    for _ in range(2):
        again = launched.by(compute)
        assert normal(again, tensors) == normal(by_triton, tensors)
        assert not any(isinstance(value, torch.Tensor) for launch in again for value in launch)
    assert len(launching._launches) == len(by_triton)


def _call(x, scale, shift, named, op):
    return op(x, scale, shift, **named)


def test_any_call_is_launched_as_if_it_were_the_first(launched):
    """Random shapes, strides, alignments, dtypes and numbers, each with and without what was kept of others."""
    draw = random.Random(0)
    op = as_on_gpu(ops.ada_layer_norm)
    alignments = set()
    for _ in range(60):
        batch, rows, channels = draw.choice([1, 2]), draw.choice([1, 3]), draw.choice([16, 17])
        dtype = draw.choice([torch.float16, torch.float32])

        def tensor(*shape, dtype=dtype):
            kind = draw.choice(["plain", "offset", "rows", "columns"])
            big = torch.zeros(*shape[:-1], 2 * shape[-1] + 1, dtype=dtype)
            return {"plain": big[..., : shape[-1]].contiguous(), "offset": big[..., 1 : 1 + shape[-1]],
                    "rows": big[..., : shape[-1]], "columns": big[..., : 2 * shape[-1] : 2]}[kind]  # fmt: skip

        x, scale, shift = tensor(batch, rows, channels), tensor(batch, 1, channels), tensor(batch, 1, channels)
        named = dict(eps=draw.choice([1e-6, 1, 1.0, 0.5]))
        if draw.random() < 0.5:
            named["weight"] = tensor(channels)
        inputs = [x, scale, shift, *([named["weight"]] if "weight" in named else [])]
        alignments.add(tuple(t.data_ptr() % 16 == 0 for t in inputs))
        call = functools.partial(_call, x, scale, shift, named)
        kept = launched.by(functools.partial(call, op))
        first = launched.by(functools.partial(call, as_on_gpu(ops.ada_layer_norm)))
        assert normal(kept, inputs) == normal(first, inputs)
    assert len(alignments) > 4


def test_alignment_of_pointers_chooses_the_kernel(launched):
    op, row = as_on_gpu(ops.ada_layer_norm), half(2, 1, 64)
    aligned, shifted = half(2, 4, 64), half(2, 4, 64, offset=1)
    functions = [launched.by(lambda x=x: op(x, row, row))[0][4] for x in (aligned, shifted) * 3]
    assert functions[0] != functions[1]
    assert functions == functions[:2] * 3


def test_numbers_that_are_equal_are_one_signature_and_give_one_kernel(launched):
    op, x, row = as_on_gpu(ops.ada_layer_norm), half(2, 4, 64), half(2, 1, 64)
    found = [launched.by(lambda eps=eps: op(x, row, row, eps=eps))[0] for eps in (1, 1.0, True)]
    assert len({launch[4] for launch in found}) == 1
    eps = found[0][9 + ada_layer_norm_kernel.arg_names.index("eps")]
    assert type(eps) is float  # as an int, 1 would be a constant of the kernel


def test_what_is_kept_is_bounded_and_holds_no_tensor(launched, monkeypatch):
    monkeypatch.setattr(calls, "MAX_KEPT", 3)
    op = as_on_gpu(ops.group_norm_silu)
    died = []
    for pixels in range(4, 12):
        x, weight = half(1, 64, pixels, 4), half(64)
        out = op(x, 32, weight, weight)
        died += [weakref.ref(t) for t in (x, weight, out)]
    launched.found.clear()
    del x, weight, out
    gc.collect()
    assert all(reference() is None for reference in died)
    assert len(op.calls._runs) == len(op.calls._plans) == 3


def test_a_launch_keeps_few_kernels(launched, monkeypatch):
    monkeypatch.setattr(launching, "MAX_KEPT", 2)
    numbers = torch.zeros(1000, dtype=torch.float16)
    forward, row = Forward(half(1, 4, 64), scale=None, shift=None, weight=None, bias=None, eps=1e-6), [None] * 6
    for offset in range(0, 12):
        x = numbers[offset : offset + 256].view(1, 4, 64)
        assert len(launched.by(lambda x=x: forward(x, *row))) == 1
        assert len(forward._launch._kept) <= 2


def test_threads_launch_what_they_ask_for(launched):
    op = as_on_gpu(ops.ada_layer_norm)
    inputs = [(half(1, rows, 64), half(1, 1, 64)) for rows in range(1, 9)]
    op(*inputs[0], inputs[0][1])
    launched.found.clear()
    failures = []

    def work(x, row):
        try:
            for _ in range(50):
                op(x, row, row)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in inputs]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures
    grids = {x.data_ptr(): x.shape[1] for x, _ in inputs}
    assert len(launched.found) == 8 * 50
    for launch in launched.found:
        x = launch[9].data_ptr() if isinstance(launch[9], torch.Tensor) else launch[9]
        assert launch[0] == grids[x]


def test_a_launch_is_on_the_device_and_stream_of_its_tensors(launched):
    here = half(1, 4, 64)
    there = half(1, 4, 64).as_subclass(OnDevice)
    launched.device.streams |= {3: 33}
    forward = Forward(here, scale=None, shift=None, weight=None, bias=None, eps=1e-6)
    for x, stream in [(here, 7), (there, 33), (there, 33), (here, 7), (here, 7), (there, 33)]:
        (launch,) = launched.by(lambda x=x: forward(x, *[None] * 6))
        assert launch[3] == stream
        assert launched.device.device == -1  # as before
    launched.device.streams[-1] = 8  # a graph is captured on a stream of its own
    assert launched.by(lambda: forward(here, *[None] * 6))[0][3] == 8


@pytest.mark.skipif(not HOOKS, reason="this Triton has no chains of hooks")
def test_who_watches_launches_is_told(launched):
    op, x, row = as_on_gpu(ops.ada_layer_norm), half(2, 4, 64), half(2, 1, 64)
    for _ in range(2):
        op(x, row, row)
    chain, told = triton.knobs.runtime.launch_exit_hook, []
    chain.add(told.append)
    try:
        (launch,) = launched.by(lambda: op(x, row, row))
    finally:
        chain.remove(told.append)
    assert launch[6] is not None
    assert launch[8] is chain  # which the launcher calls
    ada_layer_norm_kernel.add_pre_run_hook(lambda *args, **named: told.append(named["channels"]))
    try:
        launched.by(lambda: op(x, row, row))
    finally:
        ada_layer_norm_kernel.pre_run_hooks.clear()
    assert told == [64]
    assert launched.by(lambda: op(x, row, row))[0][6:9] == (None, None, None)


@pytest.mark.skipif(not HOOKS, reason="this Triton has no knobs")
def test_settings_of_triton_that_change_are_followed(launched, monkeypatch):
    op, x, row = as_on_gpu(ops.ada_layer_norm), half(2, 4, 64), half(2, 1, 64)
    kernels = [launched.by(lambda: op(x, row, row))[0] for _ in range(2)]
    compiled = len(ada_layer_norm_kernel.device_caches[-1][0])
    monkeypatch.setattr(triton.knobs.runtime, "debug", True)
    kernels += [launched.by(lambda: op(x, row, row))[0] for _ in range(2)]
    assert len(ada_layer_norm_kernel.device_caches[-1][0]) == compiled + 1
    assert kernels[2][6] is not None, "compiled anew"
    assert kernels[3][6] is None
    monkeypatch.undo()


def test_an_unknown_triton_launches_by_its_own_path_and_is_named(launched, monkeypatch):
    monkeypatch.setattr(launching, "KNOWN", ((9, 1), (9, 2)))
    op, x, row = as_on_gpu(ops.ada_layer_norm), half(2, 4, 64), half(2, 1, 64)
    for _ in range(3):
        (launch,) = launched.by(lambda: op(x, row, row))
        assert isinstance(launch[9], torch.Tensor)
    monkeypatch.setattr(triton_kernels, "unavailable", lambda: None)
    monkeypatch.setattr(choice, "_chosen", "auto")
    assert f"Triton {triton.__version__} is none of 9.1 to 9.2" in str(explain())


def test_pointers_are_a_kernels_first_parameters():
    with pytest.raises(AssertionError, match="lacks"):
        Launch(ada_layer_norm_kernel, (1,), rows=1, eps=1e-6)
