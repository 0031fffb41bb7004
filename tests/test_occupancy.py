"""The estimate of occupancy against values from CUDA's occupancy calculator, and what kernels are said to move."""

import importlib.util
import itertools

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from fastdiff.kernels.ahead_of_time import costs
from fastdiff.kernels.ahead_of_time.compile import TARGETS
from fastdiff.kernels.ahead_of_time.occupancy import LIMITS, occupancy, resident_blocks
from fastdiff.runtime.device import Device


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "blocks"),
    [
        ("sm_80", 32, 0, 8, 8),  # all 64 warps
        ("sm_80", 33, 0, 8, 6),  # 40 registers are given
        ("sm_80", 128, 0, 4, 4),
        ("sm_80", 255, 0, 8, 1),
        ("sm_80", 64, 48 << 10, 4, 3),
        ("sm_90", 64, 48 << 10, 4, 4),
        ("sm_90", 32, 227 << 10, 4, 1),
        ("sm_90", 16, 0, 1, 32),
        ("gfx942", 64, 0, 4, 8),
        ("gfx942", 128, 0, 4, 4),
        ("gfx942", 64, 64 << 10, 4, 1),
        ("sm_80", 255, 0, 16, 0),  # does not run at all
    ],
)
def test_resident_blocks(target, registers, shared, warps, blocks):
    assert resident_blocks(target, registers, shared, warps) == blocks
    assert occupancy(target, blocks, warps) == blocks * warps / LIMITS[target].warps


def test_bytes_that_are_read_again():
    small = Device("sm_80", 100, 1 << 20)
    shape = costs.Attention(batch=1, heads=2, queries=4096, keys=4096, dim=64, size=2)
    inside = costs.attention_forward(shape, block_m=128, resident=200, device=TARGETS["sm_90"].device)
    assert inside.moved == inside.least == 4 * 2 * 4096 * 64 * 2 + 2 * 4096 * 4
    # 2 x 2 x 512 KiB of keys and values do not fit: 32 tiles a head, 16 at once, read them twice.
    outside = costs.attention_forward(shape, block_m=128, resident=16, device=small)
    assert outside.moved - outside.least == 2 * 2 * 4096 * 64 * 2
    for adaptive, target in itertools.product((False, True), TARGETS):
        device = TARGETS[target].device
        fits = costs.group_norm_silu(2, 640, 1024, 32, 2, adaptive=adaptive, device=device)
        assert fits.moved == fits.least
        # Launches for a few groups at a time find in the cache what they read again; a small cache holds not even one.
        numbers = 128 * 512 * 512
        large = costs.group_norm_silu(1, 128, 512 * 512, 32, 2, adaptive=adaptive, device=device)
        assert 2 * 2 * numbers < large.moved < 1.01 * large.least
        beyond = costs.group_norm_silu(1, 128, 512 * 512, 32, 2, adaptive=adaptive, device=small)
        assert beyond.moved >= beyond.least + 2 * numbers
    shape = costs.Attention(batch=2, heads=10, queries=4096, keys=4096, dim=64, size=2)
    blocks = dict(block_m=64, block_n=64, resident=108)
    inside = costs.attention_backward(shape, **blocks, device=TARGETS["sm_80"].device)
    assert inside.least == 8 * 2 * 10 * 4096 * 64 * 2 + 2 * 10 * 4096 * 4
    assert inside.moved == inside.least + 2 * 10 * 4096 * 4  # delta
    assert inside.flops == 14 * 2 * 10 * 4096 * 4096 * 64 + 2 * 2 * 10 * 4096 * 64
    assert costs.attention_backward(shape, **blocks, device=small).moved > 1.5 * inside.least
    step = costs.linear_combine(1000, [4, 4, 2], [4, 2], noises=1)
    assert step.moved == step.least == 16000
