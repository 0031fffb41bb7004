"""The Triton kernels of group_norm_silu: numbers in the interpreter, compilation ahead of time. No GPU is needed."""

import itertools

import pytest
from triton_process import TARGETS, compile_ahead, interpret

from fastdiff.runtime.device import Device


@pytest.mark.parametrize("program", ["numbers", "gradients", "rows", "runs", "far_means"])
def test_in_the_interpreter(program):
    interpret("group_norm_silu", program)


@pytest.mark.long
def test_rows_of_every_type_in_the_interpreter():
    interpret("group_norm_silu", "rows", "every")


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_ahead_of_time_without_spills(target):
    compile_ahead("group_norm_silu", target)


def test_plans_cover_every_group_once():
    from fastdiff.kernels.group_norm_silu.plan import MAX_PARTS, MAX_WHOLE, plan

    for samples, groups, width, pixels, last, multiprocessors, cache in itertools.product(
        (1, 2, 64),
        (1, 32),
        (1, 4, 10, 80, 40000),
        (1, 35, 4096, 1 << 20),
        (False, True),
        (1, 132),
        (1, 50 << 20, 1 << 62),
    ):
        device = Device("sm_90", multiprocessors, cache)
        for tensors, whole in ((1, None), (2, False)):
            cut = plan(
                samples, groups, width, pixels, 2, channels_last=last, device=device, tensors=tensors, whole=whole
            )
            assert cut.block_channels & (cut.block_channels - 1) == cut.block_pixels & (cut.block_pixels - 1) == 0
            assert (cut.block_channels + cut.more_channels) * cut.block_pixels <= MAX_WHOLE
            assert 1 <= cut.parts <= MAX_PARTS
            assert (cut.parts - 1) * cut.part_pixels < pixels <= cut.parts * cut.part_pixels
            launches = list(cut.launches(samples * groups))
            assert [first for first, _ in launches] == [sum(n for _, n in launches[:i]) for i in range(len(launches))]
            assert sum(n for _, n in launches) == samples * groups
            if cut.whole:
                assert cut.block_channels + cut.more_channels >= width
                assert cut.block_pixels >= pixels


def test_plans_over_rows_cover_every_pixel_once():
    from fastdiff.kernels.group_norm_silu.rows_plan import MAX_PARTS, MOST_COLUMNS, WHOLE, other_rows, rows_plan

    sizes = itertools.product((1, 2, 64, 65536), (1, 3, 32, 9000), (1, 4, 10, 80), (1, 35, 4096, 1 << 20), (1, 132))
    for samples, groups, width, pixels, multiprocessors in sizes:
        device = Device("sm_90", multiprocessors, 1 << 20)
        best = rows_plan(samples, groups, width, pixels, device=device)
        if best is None:
            assert samples == 65536 or (groups == 9000 and width * pixels > WHOLE // 2)
            continue
        others = other_rows(best, samples, groups, width, pixels, device)
        assert best not in others
        assert sum(cut.backwards for cut in others) <= 1
        for cut in (best, *others):
            assert cut.block_width >= width
            assert all(n & (n - 1) == 0 for n in (cut.block_groups, cut.block_width, cut.block_pixels, cut.num_warps))
            if cut.whole:
                assert cut.block_pixels >= pixels
                assert cut.block_width * cut.block_pixels <= WHOLE
                continue
            assert groups <= cut.block_groups
            assert cut.block_groups * cut.block_width <= MOST_COLUMNS
            assert (cut.parts - 1) * cut.part_pixels < pixels <= cut.parts * cut.part_pixels
            assert cut.parts <= MAX_PARTS
            assert cut.part_pixels % cut.block_pixels == 0
            if cut.backwards:
                tiles = cut.part_pixels // cut.apply_pixels
                assert tiles * cut.apply_pixels == cut.part_pixels
                assert cut.parts * tiles < 1 << 16
                places = {n % cut.parts * tiles + tiles - 1 - n // cut.parts for n in range(cut.parts * tiles)}
                assert places == set(range(cut.parts * tiles))
            for first in range(0, groups * width, cut.apply_channels):
                last = min(first + cut.apply_channels, groups * width) - 1
                assert last // width - first // width < cut.touched_groups


def test_plans_of_runs_cover_every_number_once():
    from fastdiff.kernels.group_norm_silu.flat_plan import MOST_ALONE, flat_plans

    sizes = itertools.product((1, 2, 64), (1, 32), (1, 10, 80), (1, 35, 4096, 1 << 20), (1, 132), (1, 50 << 20))
    for samples, groups, width, pixels, multiprocessors, cache in sizes:
        device = Device("sm_90", multiprocessors, cache)
        found = flat_plans(samples, groups, width, pixels, 2, device=device)
        assert [cut.alone for cut in found] == [False, True][: 1 + (width * pixels <= MOST_ALONE)]
        for cut in found:
            part = cut.tiles * cut.block
            assert (cut.parts - 1) * part < width * pixels <= cut.parts * part
            assert cut.block & (cut.block - 1) == 0
            assert not cut.even or pixels % cut.block == 0
            assert cut.parts < 1 << 16
            assert 1 <= cut.pairs <= samples * groups
            assert cut.parts == 1 or not cut.alone
