"""The Triton kernels of attention: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import pytest
from triton_process import TARGETS, compile_ahead, interpret


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_in_the_interpreter(dtype):
    interpret("attention", "numbers", dtype)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("attention", target)


@pytest.mark.parametrize("target", ["sm_90", pytest.param("sm_80", marks=pytest.mark.long)])
def test_tiles_to_be_timed_compile_without_spills(target):
    compile_ahead("attention", target, "timed_compiles")


def test_tiles_are_those_that_were_measured():
    """The quickest of our own on an H100, by heads, queries, keys and head dimension."""
    from fastdiff.kernels.attention.tiles import choose

    for heads, queries, keys, dim, wanted in [
        (16, 4096, 4096, 40, "128x64/8/3"),
        (20, 4096, 4096, 64, "128x64/8/3"),
        (48, 4096, 4096, 128, "128x64/8/3"),
        (16, 1024, 1024, 80, "64x64/4/3"),
        (32, 1024, 1024, 72, "128x64/4/3"),
        (16, 256, 256, 160, "64x64/4/2"),
    ]:
        tile = choose("forward", "sm_90", "half", dim, queries=queries, keys=keys, heads=heads, available=132)
        assert tile.said == wanted


def test_tiles_of_gradients_have_three_stages_on_hopper_and_others_to_be_timed():
    from fastdiff.kernels.attention.tiles import choose, others

    for dim, dq, dkv in [
        (40, "128x64/8/3", "64x128/8/3"), (80, "128x64/8/3", "64x128/8/3"), (128, "128x64/8/3", "64x64/8/3"),
        (160, "128x64/8/3", "64x64/8/3 apart"), (256, "128x32/8/2", "32x64/8/2 apart"),
    ]:  # fmt: skip
        assert choose("dq", "sm_90", "half", dim).said == dq
        assert choose("dkv", "sm_90", "half", dim).said == dkv
    said = [tile.said for tile in others("dkv", "sm_90", "half", 80, masked=False)]
    assert {"64x64/4/3", "64x64/8/3", "64x128/8/2"} < {*said}
    assert said[0] != choose("dkv", "sm_90", "half", 80).said
    assert "64x64/4/3" not in [tile.said for tile in others("dkv", "sm_90", "half", 128, masked=False)]  # it spills
    assert choose("dq", "sm_90", "half", 80, masked=True).num_stages == 2
    assert "64x64/4/3" not in [tile.said for tile in others("dq", "sm_90", "half", 80, masked=True)]


def test_tiles_that_were_wrong_are_refused(monkeypatch):
    """128x128, 4 warps, one stage gave wrong numbers on an H100, with D = 40 and 77 keys. It also spills registers."""
    import torch

    from fastdiff.kernels.attention import attention_forward
    from fastdiff.kernels.attention.tiles import TILES, TIMED, Tile, unfit
    from fastdiff.runtime import device

    assert "one stage" in unfit(Tile(128, 128, 4, 1), "forward", "sm_90", "half", 40)
    assert "one stage" in unfit(Tile(64, 128, 4, 1), "forward", "sm_90", "half", 40)
    assert "holds 240 numbers a thread" in unfit(Tile(128, 128, 4, 2), "forward", "sm_90", "half", 40)
    for (target, kind), tables in TILES.items():
        for name, table in tables.items():
            for dim, *tile in table:
                assert unfit(Tile(*tile), name.split()[0], target, kind, dim) is None
    for (target, kind), tiles in TIMED.items():
        assert all(unfit(tile, "forward", target, kind, dim) is None for dim, tile in tiles)
    monkeypatch.setattr(device, "ABSENT", device.Device("sm_90", 132, 50 << 20, "sm_90"))
    q, k = torch.zeros(1, 1, 128, 40, dtype=torch.float16), torch.zeros(1, 1, 77, 40, dtype=torch.float16)
    with pytest.raises(ValueError, match="128x128/4/1 has one stage"):
        attention_forward(q, k, k, tile=Tile(128, 128, 4, 1))


def test_tiles_follow_the_shape():
    from fastdiff.kernels.attention.tiles import TILES, choose, most_splits_of_dkv, splits_for, widths

    assert [widths(dim) for dim in (1, 40, 64, 72, 80, 96, 100, 128, 160, 256)] == [
        (16, 0), (32, 16), (64, 0), (64, 16), (64, 16), (64, 32), (128, 0), (128, 0), (128, 32), (256, 0),
    ]  # fmt: skip
    assert [widths(dim)[1] for dim in (257, 320, 384, 400, 512)] == [16, 64, 128, 256, 256]
    with pytest.raises(ValueError, match="between 1 and 512, got 513"):
        widths(513)
    assert choose("forward", "sm_80", "half", 40, keys=77).block_n == 32  # 96 columns instead of 128
    assert choose("forward", "sm_80", "half", 40, keys=4096).block_n == 64
    assert choose("forward", "sm_90", "half", 72, queries=256, keys=256, heads=32, available=132).block_m == 64
    assert choose("forward", "sm_90", "half", 64, queries=4096, keys=4096, heads=16, available=132).block_m == 128
    assert splits_for(512, 64, 132) == 1
    assert splits_for(4, 64, 132) == 8
    assert splits_for(4, 64, 132, most_splits_of_dkv(4096, 77, 2)) == 4
    assert most_splits_of_dkv(256, 256, 2) == 1
    for tables in TILES.values():
        for table in tables.values():
            assert [limit for limit, *_ in table] == sorted(limit for limit, *_ in table)
            assert table[-1][0] == 256
