"""The kernel of attention for Hopper: its protocol in a simulation on the CPU, compiled ahead of time, what it takes.

No GPU is needed."""

import pytest
import torch
import torch.nn.functional as F
from triton_process import compile_ahead

from fastdiff.kernels.attention import hopper
from fastdiff.kernels.attention.hopper import Cut
from fastdiff.kernels.attention.tiles import widths

needs_gluon = pytest.mark.skipif(hopper.missing() is not None, reason=str(hopper.missing()))


def simulate(shape, cut, *, dtype=torch.float16, seed=0, programs=None, **changed):
    """Ours, torch's and the exact output; our log-sum-exp and the exact one. changed: its functions."""
    from hopper_simulation import Box, Device, Pointer

    from fastdiff.kernels.attention import hopper_consumer, hopper_kernel

    batch, heads, queries, keys, dim = shape
    torch.manual_seed(seed)
    q, k, v = (torch.randn(batch, n, heads, dim).to(dtype).transpose(1, 2) for n in (queries, keys, keys))
    q[:, :, ::7] *= 8  # rows of large scores
    out, lse = torch.full_like(q, torch.nan), torch.full((batch, heads, queries), torch.nan)
    width0, width1 = widths(dim)
    rows = hopper.ROWS
    boxes = {}
    for name, tensor, size in (("q", q, rows), ("k", k, cut.block_n), ("v", v, cut.block_n), ("out", out, rows)):
        boxes |= {f"{name}0": Box(tensor, size, width0), f"{name}1": Box(tensor, size, width1 or width0)}
    tiles = -(-queries // (rows * cut.consumers)) * batch * heads
    device = Device([hopper_consumer, hopper_kernel], seed, programs or tiles)
    device.functions |= changed
    device.launch(
        "attention_hopper_kernel", **boxes, lse=Pointer(lse), heads=heads, tiles=tiles, queries=queries, keys=keys,
        scale=dim**-0.5, dtype=dtype, width0=width0, width1=width1, rows=rows, block_n=cut.block_n, stages=cut.stages,
        consumers=cut.consumers, turns=cut.turns, whole_keys=keys % cut.block_n == 0, consumer_registers=0,
        producer_registers=0,
    )  # fmt: skip
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    scores = q.double() @ k.double().mT * dim**-0.5
    return out, F.scaled_dot_product_attention(q, k, v), exact, lse, scores.logsumexp(-1)


@needs_gluon
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("shape", "cut", "programs"),
    [
        ((1, 2, 300, 333, 40), Cut(4, 64, 4, persistent=True), 2),
        ((2, 1, 260, 256, 64), Cut(2, 128, 2, persistent=True), 3),
        ((1, 2, 130, 300, 72), Cut(2, 128, 2, turns=True), None),
        ((1, 1, 257, 520, 80), Cut(2, 64, 3, turns=True, persistent=True), 2),
        ((1, 1, 200, 300, 128), Cut(2, 128, 2), None),
        ((1, 3, 65, 200, 160), Cut(1, 128, 2), None),
        ((1, 2, 1, 77, 48), Cut(1, 128, 2, persistent=True), 1),
        ((1, 1, 70, 130, 24), Cut(3, 64, 1), None),
    ],
    ids=str,
)
def test_protocol_in_a_simulation(shape, cut, programs, seed):
    ours, theirs, exact, lse, exact_lse = simulate(shape, cut, seed=seed, programs=programs)
    error, allowed = ((t.double() - exact).abs() for t in (ours, theirs))
    # A result cannot be nearer than the rounding of probabilities and of the result itself.
    floor = torch.finfo(torch.float16).eps * float(exact.abs().max())
    assert error.max() <= 2 * allowed.max() + floor  # false with a NaN
    assert (lse.double() - exact_lse).abs().max() <= 1e-5 * exact_lse.abs().max()


@needs_gluon
def test_bfloat16_in_the_simulation():
    ours, theirs, exact, *_ = simulate((1, 1, 70, 200, 40), Cut(2, 64, 2), dtype=torch.bfloat16)
    assert ours.dtype is torch.bfloat16
    error, allowed = ((t.double() - exact).abs().max() for t in (ours, theirs))
    assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps * float(exact.abs().max())


@needs_gluon
@pytest.mark.parametrize(
    "changed",
    [
        {"phase_of": lambda count, stages: 0},
        {"phase_of": lambda count, stages: (count // stages + 1) & 1},
        {"stage_of": lambda count, stages: 0},
        {"turn_of": lambda count, step, consumer: 0},
        {"turn_of": lambda count, step, consumer: (count - step - 1) & 1},
    ],
    ids=["phase 0", "other phase", "stage 0", "turn 0", "nobody begins"],
)
def test_the_simulation_finds_wrong_protocols(changed):
    from simulated_threads import Stuck

    cut, found = Cut(2, 64, 2, turns=True, persistent=True), 0
    for seed in range(4):
        try:
            ours, _, exact, *_ = simulate((1, 2, 140, 400, 16), cut, seed=seed, programs=1, **changed)
            found += not (ours.double() - exact).abs().max() < 1e-2
        except (Stuck, AssertionError):
            found += 1
    assert found


@needs_gluon
def test_compiles_ahead_of_time_without_spills():
    compile_ahead("attention_hopper", "sm_90")


@needs_gluon
def test_launches_are_prepared_once():
    """A GPU that is not there: what its launcher is given the first time, by Triton's own path, and the second time."""
    from fastdiff.kernels.ahead_of_time.stand_in import stand_in

    given = []
    q, k = torch.randn(1, 2, 70, 40).half(), torch.randn(1, 2, 128, 40).half()
    with stand_in("sm_90", lambda *arguments: given.append(arguments)):
        forward = hopper.HopperForward(q, k, k)
        results = [forward(q, k, k) for _ in range(2)]
    first, second = given
    assert first[:3] == second[:3] == (4, 1, 1)
    for arguments, (out, lse) in zip(given, results):
        *descriptors, pointer = arguments[9:18]
        assert [d.base is t for d, t in zip(descriptors, (q, q, k, k, k, k, out, out))] == [True] * 8
        assert [d.block_shape[2:] for d in descriptors[:4]] == [[64, 32], [64, 16], [128, 32], [128, 16]]
        assert getattr(pointer, "data_ptr", lambda pointer=pointer: pointer)() == lse.data_ptr()
    assert second[18:] == first[18:]
    assert second[18:22] == (2, 4, 70, 128)  # heads, tiles, queries, keys


def test_cuts_are_those_that_were_measured():
    """The quickest on an H100, by heads, queries and head dimension."""
    for heads, tokens, dim, wanted in [
        (16, 4096, 40, "4x64x64/4 persistent"),
        (20, 4096, 64, "2x64x128/2 persistent"),
        (48, 4096, 128, "2x64x128/2"),
        (16, 1024, 80, "1x64x128/2 x2"),
        (32, 1024, 72, "2x64x128/2 turns"),
        (16, 256, 160, "1x64x128/2"),
    ]:
        first, other = hopper.cuts(dim, tokens, tokens, heads, 132)
        assert first.said == wanted
        assert other != first
    for keys in (4000, 77):  # some spill with keys that do not fill their blocks
        assert not {*hopper.WHOLE} & {*hopper.cuts(40, 4096, keys, 16, 132), *hopper.cuts(160, 256, keys, 16, 132)}


def test_registers_fit_a_multiprocessor():
    for _, cut in (*hopper.FEW, *hopper.MANY):
        start, consumer, producer = cut.registers
        assert start * 128 * (cut.consumers + 1) * cut.resident <= hopper.REGISTERS
        assert consumer * cut.consumers + producer == start * (cut.consumers + 1)
        assert all(24 <= n <= 240 and n % 8 == 0 for n in (consumer, producer))


def test_what_the_kernel_cannot_take_is_named():
    q = torch.zeros(1, 2, 16, 64, dtype=torch.float16)
    wide, odd, none = q.new_zeros(1, 2, 16, 256), q.new_zeros(1, 2, 16, 20), q.new_zeros(1, 2, 0, 64)
    assert hopper.unfit(q, q, q, 0.1) is None
    assert "float16 and bfloat16" in hopper.unfit(q.float(), q.float(), q.float(), 0.1)
    assert "up to 160" in hopper.unfit(wide, wide, wide, 0.1)
    assert "multiples of 8, not 20" in hopper.unfit(odd, odd, odd, 0.1)
    assert "scale above 0, not -0.1" in hopper.unfit(q, q, q, -0.1)
    assert "one key" in hopper.unfit(q, none, none, 0.1)
    with pytest.raises(ValueError, match="up to 160"):
        hopper.attention_hopper(wide, wide, wide)


def test_tensors_that_tma_cannot_read_are_copied():
    q = torch.randn(1, 2, 16, 64).half()
    storage = torch.randn(2 * 16 * 64 + 8).half()
    for other in (
        storage[1 : 1 + 2 * 16 * 64].view(1, 2, 16, 64), q.transpose(2, 3).contiguous().transpose(2, 3),
        q[:, :1].expand(1, 2, 16, 64), torch.randn(1, 2, 16, 65).half()[..., :64],
    ):  # fmt: skip
        copied = hopper.aligned(other)
        assert copied is not other
        assert torch.equal(copied, other)
        assert hopper.aligned(copied) is copied
    assert hopper.aligned(q) is q
    assert hopper.aligned(q.transpose(1, 2).contiguous().transpose(1, 2)).stride() == (2048, 64, 128, 1)


def test_absence_is_explained(monkeypatch):
    hopper.missing.cache_clear()
    monkeypatch.setattr(hopper.triton, "__version__", "3.5.1")
    assert hopper.missing() == "Triton 3.5.1 has no Gluon as the kernel asks for it (3.6 has)"
    q = torch.zeros(1, 2, 16, 64, dtype=torch.float16)
    with pytest.raises(RuntimeError, match=r"Triton 3\.5\.1 has no Gluon"):
        hopper.attention_hopper(q, q, q)
    monkeypatch.undo()
    hopper.missing.cache_clear()
