"""attention: q, k and v of (B, H, S, D)."""

from __future__ import annotations

from functools import partial

import torch

from fastdiff.bench.cases.case import DIT, DTYPES, GPU_DTYPES, SDXL, STABLE_DIFFUSION, Case, Inputs, Normal

# (B, H, Sq, Sk, D). Batch 2 is a guided sample; 77 keys are the text.
SHAPES = {
    STABLE_DIFFUSION: [
        (2, 8, 4096, 4096, 40), (2, 8, 4096, 77, 40), (2, 8, 1024, 1024, 80), (2, 8, 1024, 77, 80),
        (2, 8, 256, 256, 160), (2, 8, 256, 77, 160), (2, 8, 64, 64, 160),
    ],
    SDXL: [(2, 10, 4096, 4096, 64), (2, 10, 4096, 77, 64), (2, 20, 1024, 1024, 64), (2, 20, 1024, 77, 64)],
    DIT: [(2, 16, 256, 256, 72), (2, 16, 1024, 1024, 72)],
    "ADM, 256 px": [(1, 8, 1024, 1024, 64)],
    "the middle of a VAE": [(1, 1, 1024, 1024, 512)],
    "a small U-Net": [(4, 4, 64, 64, 32)],
}  # fmt: skip
_NOT_BENCHMARKED = SHAPES[SDXL][:3]
_LARGEST, _LARGEST_TEXT, _SECOND, _SECOND_TEXT = SHAPES[STABLE_DIFFUSION][:4]
_DIT, _DIT_512 = SHAPES[DIT]
_FLUX = (2, 24, 4096, 4096, 128)
_SWEPT = [shape for model in (STABLE_DIFFUSION, SDXL, DIT) for shape in SHAPES[model]] + [_FLUX]


def make(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    value_channels: int | None = None,
    transposed: bool = False,
    std: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> Inputs:
    """q, with this deviation, k, v. transposed: views of (B, S, H, D), as models have them; else contiguous."""
    batch, heads, queries, keys, channels = shape
    normal = Normal(dtype, device, seed)
    sizes = dict(q=(queries, channels), k=(keys, channels), v=(keys, value_channels or channels))
    deviations = dict(q=std, k=1.0, v=1.0)
    made = {n: normal(batch, s, heads, d, std=deviations[n]).transpose(1, 2) for n, (s, d) in sizes.items()}
    return made if transposed else {name: t.contiguous() for name, t in made.items()}


def case(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
    transposed: bool = False,
) -> Case:
    """Contiguous is the layout that torch is fastest with on the CPU."""
    batch, heads, queries, keys, channels = shape
    return Case(
        "attention", (batch, heads, queries, channels), dtype, partial(make, shape, dtype, transposed=transposed),
        bytes=2 * batch * heads * (queries + keys) * channels * dtype.itemsize,
        flops=(14 if backward else 4) * batch * heads * queries * keys * channels, detail=f"{keys} keys",
        reduction=keys, backward=backward,
    )  # fmt: skip


def _on_gpu(*shapes: tuple[int, int, int, int, int]) -> list[Case]:
    return [case(shape, dtype, transposed=True) for dtype in GPU_DTYPES for shape in shapes]


CASES = {
    "benchmark": [
        *(case(shape) for shapes in SHAPES.values() for shape in shapes if shape not in _NOT_BENCHMARKED),
        *(
            case(shape, dtype)
            for dtype in (torch.bfloat16, torch.float16)
            for shape in (_SECOND, SHAPES[STABLE_DIFFUSION][4], _DIT, _LARGEST_TEXT, _SECOND_TEXT)
        ),
        *(case(shape, backward=True) for shape in (_SECOND, _DIT, _SECOND_TEXT)),
    ],
    "gpu": _on_gpu(_LARGEST, _LARGEST_TEXT, SHAPES[SDXL][2], _DIT_512),
    "gpu-small": _on_gpu((1, 2, 40, 33, 40), (1, 1, 20, 77, 72)),
    "gpu-gradients": _on_gpu((2, 3, 65, 77, 40), (1, 1, 130, 130, 256)),
    "sweep": [case(shape, torch.float16, transposed=True) for shape in (*_SWEPT, (1, 1, 4096, 4096, 512))],
    "sweep-gradients": [
        case(shape, torch.float16, backward=True, transposed=True)
        for shape in (_LARGEST, _LARGEST_TEXT, _SECOND, SHAPES[SDXL][0], _FLUX, _DIT)
    ],
    "smallest": [case((1, 1, 2, 2, 8), dtype) for dtype in DTYPES],
}
