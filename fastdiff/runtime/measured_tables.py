"""What was measured on GPUs, as tables: who computes a class of shapes, and tiles of attention.

Made by `python -m fastdiff.kernels.tables benchmarks/measured/*.json`, and not to be edited.
"""
# fmt: off

from __future__ import annotations

from fastdiff.runtime.candidates import Row
from fastdiff.runtime.shape_classes import MANY, Bounds

Numbers = tuple[int, int, int, int, bool]  # queries, keys, warps, stages; dk and dv apart

ROWS: tuple[Row, ...] = (
    Row(
        "attention", "sm_90", "half",
        (("dim", 33, 41), ("queries", 2048, MANY), ("keys", 2048, MANY)),
        "cudnn", "cudnn 153 us, triton 128x64/8/3 183 us, flash 273 us",
        "NVIDIA H100 80GB HBM3, in a graph", ("cudnn", "flash", "triton"),
    ),
    Row(
        "attention", "sm_90", "half",
        (("dim", 57, 65), ("queries", 2048, MANY), ("keys", 2048, MANY)),
        "cudnn", "cudnn 180 us, triton 128x64/8/3 203 us, flash 297 us",
        "NVIDIA H100 80GB HBM3, in a graph", ("cudnn", "flash", "triton"),
    ),
    Row(
        "attention", "sm_90", "half",
        (("dim", 65, 73), ("queries", 513, 2048), ("keys", 513, 2048)),
        "cudnn", "cudnn 33.7 us, triton 128x64/4/3 33.9 us, flash 49.3 us",
        "NVIDIA H100 80GB HBM3, in a graph", ("cudnn", "flash", "triton"),
    ),
    Row(
        "attention", "sm_90", "half",
        (("dim", 73, 81), ("queries", 513, 2048), ("keys", 513, 2048)),
        "cudnn", "cudnn 17.9 us, triton 64x64/4/3 19.3 us, flash 29.8 us",
        "NVIDIA H100 80GB HBM3, in a graph", ("cudnn", "flash", "triton"),
    ),
    Row(
        "attention", "sm_90", "half",
        (("dim", 121, 129), ("queries", 2048, MANY), ("keys", 2048, MANY)),
        "cudnn", "cudnn 695 us, triton 128x64/8/3 867 us, flash 1203 us",
        "NVIDIA H100 80GB HBM3, in a graph", ("cudnn", "flash", "triton"),
    ),
    Row(
        "attention", "sm_90", "half",
        (("dim", 129, 161), ("queries", 129, 513), ("keys", 129, 513)),
        "triton 64x64/4/2", "triton 64x64/4/2 7.86 us, cudnn 10.6 us, flash 14.3 us",
        "NVIDIA H100 80GB HBM3, in a graph", ("cudnn", "flash", "triton"),
    ),
    Row(
        "group_norm_silu", "sm_90", "half",
        (("numbers", 25000000, MANY), ("channels_last", 0, 1), ("adaptive", 0, 1)),
        "triton", "triton 215 us, torch 1002 us",
        "NVIDIA H100 80GB HBM3, launched singly", ("torch", "triton"),
    ),
)

# Tiles of attention by architecture, class of dtype and kernel, for classes of shapes.
TILES: dict[tuple[str, str, str], tuple[tuple[Bounds, Numbers], ...]] = {
    ("sm_90", "half", "forward"): (
        ((("dim", 33, 41), ("queries", 2048, MANY), ("keys", 2048, MANY)), (128, 64, 8, 3, False)),
        ((("dim", 57, 65), ("queries", 2048, MANY), ("keys", 2048, MANY)), (128, 64, 8, 3, False)),
        ((("dim", 65, 73), ("queries", 513, 2048), ("keys", 513, 2048)), (128, 64, 4, 3, False)),
        ((("dim", 73, 81), ("queries", 513, 2048), ("keys", 513, 2048)), (64, 64, 4, 3, False)),
        ((("dim", 121, 129), ("queries", 2048, MANY), ("keys", 2048, MANY)), (128, 64, 8, 3, False)),
        ((("dim", 129, 161), ("queries", 129, 513), ("keys", 129, 513)), (64, 64, 4, 2, False)),
    ),
}

# Tiles of the forward pass that were among the quickest somewhere, with the widest heads that they were right for.
TIMED: dict[tuple[str, str], tuple[tuple[int, Numbers], ...]] = {
    ("sm_90", "half"): (
        (160, (64, 64, 4, 2, False)),
        (80, (64, 64, 4, 3, False)),
        (72, (128, 64, 4, 3, False)),
        (128, (128, 64, 8, 3, False)),
        (80, (128, 64, 8, 4, False)),
    ),
}
