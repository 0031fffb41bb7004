"""The pool of large results: shapes and strides as torch's, reuse, limits, threads, forks, and what torch does with
such tensors."""

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fastdiff
from fastdiff import memory
from fastdiff.ops import ada_layer_norm
from fastdiff.runtime.native import core

pytestmark = pytest.mark.skipif(not core.pool_available(), reason="the pool is for Linux")

MIB = 1 << 20
LARGE = (9, 1 << 20)  # 36 MiB of float32


@pytest.fixture(autouse=True)
def _fresh():
    """Each test starts with nothing idle and the limit that the pool has by itself."""
    before = memory.statistics().limit
    memory.release()
    memory.set_limit(1 << 30)
    yield
    memory.set_limit(before)


def used():
    return memory.statistics().used


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((1, 129, 513, 511), torch.contiguous_format),
        ((1, 129, 513, 511), torch.channels_last),
        ((129, 1, 513, 511), torch.channels_last),
        ((129, 511, 513, 1), torch.channels_last),
        ((3, 5, 7, 511, 630), torch.channels_last_3d),
        ((1 << 26,), torch.contiguous_format),
    ],
)
def test_shape_and_strides_are_torchs(shape, memory_format, dtype):
    theirs = torch.empty(shape, dtype=dtype, memory_format=memory_format)
    before = used()
    both = memory.empty(shape, dtype=dtype, memory_format=memory_format), memory.empty_like(theirs, memory_format)
    assert used() >= before + 2 * theirs.nbytes
    for ours in both:
        assert ours.shape == theirs.shape
        assert ours.stride() == theirs.stride()
        assert ours.dtype == dtype
        assert ours.is_contiguous(memory_format=memory_format)
        assert ours.untyped_storage().nbytes() == theirs.nbytes
        assert not ours.requires_grad


def test_small_tensors_and_other_dtypes_come_from_torch():
    before = used()
    tensors = [memory.empty((MIB - 1,), dtype=torch.float32), memory.empty(LARGE, dtype=torch.int32)]
    tensors += [memory.empty_like(torch.empty(0, 5)), memory.empty_like(torch.empty(LARGE, device="meta"))]
    assert used() == before
    assert tensors[-1].is_meta


def test_memory_is_used_again():
    x = memory.empty(LARGE, dtype=torch.float32)
    address = x.data_ptr()
    view = x[3:]
    before = memory.statistics()
    del x
    assert used() == before.used  # a view keeps it
    del view
    assert memory.statistics().idle == 36 * MIB
    again = memory.empty((35 * MIB // 2,), dtype=torch.bfloat16)  # a little smaller is near enough
    assert again.data_ptr() == address
    much_smaller = memory.empty((32 * MIB // 8,), dtype=torch.float64)
    assert much_smaller.data_ptr() != address
    assert memory.statistics().reused == before.reused + 1


def test_tensors_of_other_sizes_use_what_is_next_to_each_other():
    sizes = [(5 + number) * MIB for number in range(6)]
    tensors = [memory.empty((size // 4,), dtype=torch.float32).fill_(number) for number, size in enumerate(sizes)]
    before = memory.statistics()
    assert before.idle == 0
    del tensors[1:4]
    pages = sum(-(-size // (2 * MIB)) for size in sizes[1:4])
    whole = memory.empty((pages * MIB // 2,), dtype=torch.float32).fill_(9)
    assert memory.statistics().reused == before.reused + 1
    assert memory.statistics().idle == 0
    del whole
    again = [memory.empty((3 * MIB // 2,), dtype=torch.float32).fill_(9) for _ in range(3)]
    assert memory.statistics().mapped == before.mapped
    assert [float(t.max()) for t in tensors] == [float(t.min()) for t in tensors] == [0, 4, 5]
    assert all(float(t.min()) == 9 for t in again)


def test_values_do_not_overlap():
    tensors = [memory.empty(LARGE, dtype=torch.float32).fill_(i) for i in range(4)]
    del tensors[1]
    tensors.append(memory.empty(LARGE, dtype=torch.float32).fill_(9))
    assert [float(t.min()) for t in tensors] == [float(t.max()) for t in tensors] == [0, 2, 3, 9]


def test_idle_memory_is_bounded_and_returned_to_the_system():
    memory.set_limit(80 * MIB)
    tensors = [memory.empty(LARGE, dtype=torch.float32).zero_() for _ in range(4)]
    full = resident()
    tensors.clear()
    assert memory.statistics().idle == 80 * MIB
    assert full - resident() > 50 * MIB  # of 144
    assert memory.release() == 80 * MIB
    assert memory.statistics().idle == 0
    assert full - resident() > 130 * MIB
    x = memory.empty(LARGE, dtype=torch.float32).zero_()
    memory.set_limit(0)
    del x
    assert memory.statistics().idle == 0
    before = used()
    y = memory.empty(LARGE, dtype=torch.float32)
    assert used() == before  # no pool at all
    assert y.shape == LARGE


def test_threads():
    """Blocks are never given to two tensors at once, whatever the threads do."""
    wrong = []

    def work(number):
        for i in range(20):
            x = memory.empty(LARGE, dtype=torch.float32)
            x[::3, ::4096] = number + i
            if not torch.equal(x[::3, ::4096], torch.full((3, 256), float(number + i))):
                wrong.append((number, i))

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert used() == 0


FORK = """
import os, threading, torch
from fastdiff import memory
shape = (9, 1 << 20)
kept, idle = memory.empty(shape, dtype=torch.float32).fill_(1), memory.empty(shape, dtype=torch.float32).fill_(2)
del idle
stop = threading.Event()
def churn():
    while not stop.is_set():
        memory.empty(shape, dtype=torch.float32)
thread = threading.Thread(target=churn)
thread.start()
for _ in range(20):  # while another thread holds the pool's lock now and then
    child = os.fork()
    if child == 0:
        memory.empty(shape, dtype=torch.float32)[0, :9] = 3
        right = memory.statistics().used >= kept.nbytes and float(kept[0, 0]) == 1
        kept[0, 0] = 4
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
assert float(kept[0, 0]) == 1
before = memory.statistics()
child = os.fork()
if child == 0:
    os._exit(0 if before.idle > 0 and memory.statistics().idle == 0 else 1)
assert os.waitpid(child, 0)[1] == 0
assert memory.statistics() == before
print("ok")
"""


def test_forks():
    found = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=False, timeout=120)
    assert found.stdout == "ok\n", found.stderr


def test_what_torch_does_with_such_a_tensor():
    x = memory.empty(LARGE, dtype=torch.float32).fill_(1)
    assert x.numpy()[5, 7] == 1
    x.numpy()[5, 7] = 2
    assert float(x[5, 7]) == 2
    assert torch.equal(pickle.loads(pickle.dumps(x)), x)
    assert torch.equal(copy.deepcopy(x), x)
    assert torch.equal(torch.from_dlpack(x), x)
    with pytest.raises(RuntimeError, match="not resizable"):
        x.resize_(10, 1 << 20)
    assert x.resize_(2, 3).shape == (2, 3)
    before = used()
    shared = memory.empty(LARGE, dtype=torch.float32).fill_(5).share_memory_()  # moves to memory of its own
    assert shared.is_shared()
    assert float(shared.mean()) == 5
    assert used() == before


def test_in_place_under_autograd():
    x = memory.empty(LARGE, dtype=torch.float32).fill_(3).requires_grad_()
    y = x * 2
    y.mul_(x)
    y.sum().backward()
    assert float(x.grad[4, 5]) == 12
    base = memory.empty(LARGE, dtype=torch.float32)
    version = base._version
    base[2].zero_()
    assert base._version == version + 1


def test_inference_mode():
    with torch.inference_mode():
        assert memory.empty(LARGE, dtype=torch.float32).is_inference()
    assert not memory.empty(LARGE, dtype=torch.float32).is_inference()


def test_no_pool_for_fake_tensors_and_modes():
    before = used()
    with FakeTensorMode() as mode:
        fake = memory.empty(LARGE, dtype=torch.float32)
        assert isinstance(fake, FakeTensor)
        assert isinstance(memory.empty_like(fake), FakeTensor)
    assert isinstance(memory.empty_like(fake), FakeTensor)
    assert mode is not None
    with torch.device("meta"):
        assert memory.empty(LARGE, dtype=torch.float32).device.type == "cpu"
    assert used() == before


@pytest.fixture
def norm():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4096, 1152, generator=generator)
    return x, *torch.randn(2, 2, 1, 1152, generator=generator)


def test_results_of_operators(norm):
    x, scale, shift = norm
    before = used()
    y = fastdiff.ops.ada_layer_norm(x, scale, shift)
    assert used() == before + 36 * MIB
    torch.testing.assert_close(y, ada_layer_norm.plain(x, scale, shift), rtol=1e-5, atol=1e-5)
    del y
    picture = torch.randn(2, 96, 224, 224).contiguous(memory_format=torch.channels_last)
    z = fastdiff.ops.group_norm_silu(picture, 32)
    assert z.stride() == picture.stride()
    assert used() > before


def test_compiled_code_and_gradients(norm):
    x, scale, shift = norm

    def block(x, scale, shift):
        return fastdiff.ops.ada_layer_norm(x, scale, shift) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, scale, shift), block(x, scale, shift))
    x = x.clone().requires_grad_()
    compiled(x, scale, shift).square().sum().backward()
    found, x.grad = x.grad, None
    (2 * ada_layer_norm.plain(x, scale, shift)).square().sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=1e-2)
    del found
    assert used() == 0


def test_bad_limits():
    with pytest.raises(ValueError, match="num_bytes must not be negative, got -1"):
        memory.set_limit(-1)
    for value, limit in (("64", "67108864"), ("0", "0"), ("lots", "FASTDIFF_POOL_LIMIT must be a whole number of MiB")):
        found = subprocess.run(
            [sys.executable, "-c", "from fastdiff import memory; print(memory.statistics().limit)"],
            env=os.environ | {"FASTDIFF_POOL_LIMIT": value},
            capture_output=True,
            text=True,
            check=False,
        )
        assert limit in found.stdout + found.stderr


def test_a_format_that_does_not_fit():
    with pytest.raises(ValueError, match="channels_last does not fit"):
        memory.empty(LARGE, dtype=torch.float32, memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1 << 45,), (1 << 62, 4, 4), (3, 1 << 61)])
def test_more_than_there_is(shape):
    with pytest.raises(MemoryError):
        memory.empty(shape, dtype=torch.float32)


def test_negative_sizes():
    with pytest.raises(ValueError, match="negative"):
        memory.empty((-1, -(1 << 25)), dtype=torch.float32)
