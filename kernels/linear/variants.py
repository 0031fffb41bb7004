"""The compilations of linear's kernels that a launch may ask for, to be checked ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ..ahead_of_time.catalogue import TYPES, USUAL, Entry, constant, tensor
from ..ahead_of_time.compile import TARGETS, Launch, launches
from ..ahead_of_time.costs import Cost
from .launch import TensorDescriptor, linear
from .tiles import DESCRIBED, Tile, choose, tiles

ROWS, INPUTS, COLUMNS = 8192, 320, 1280  # tokens of Stable Diffusion's U-Net, and a layer of it
FEW = (2, 1152, 6912)  # rows, inputs and columns of the modulation of a block of DiT-XL/2


def launched(
    target: str, dtype: str, tile: Tile | None, *, glu: bool, followed: bool, inputs: int = INPUTS
) -> Launch:  # fmt: skip
    """The launch of a tile, with bias and GELU. followed: and with gate and residual."""
    gate, residual = (tensor(dtype, 2, rows, COLUMNS) if followed else None for rows in (1, ROWS // 2))
    (found,) = launches(
        target, linear, tensor(dtype, 2, ROWS // 2, inputs), tensor(dtype, COLUMNS * (2 if glu else 1), inputs),
        tensor(dtype, COLUMNS * (2 if glu else 1)), gate=gate, residual=residual, activation="gelu", glu=glu, tile=tile,
    )  # fmt: skip
    return found


def few(target: str, dtype: str, rows: int = FEW[0]) -> Launch:
    """The launch of a product with few rows."""
    _, inputs, columns = FEW
    x, weight, bias = tensor(dtype, rows, 1, inputs), tensor(dtype, columns, inputs), tensor(dtype, columns)
    (found,) = launches(target, linear, x, weight, bias)
    return found


def own_tiles(target: str, dtype: str, glu: bool, followed: bool) -> list[Tile]:
    """The tile that is chosen where nothing is timed, then those that are timed beside it."""
    described = TensorDescriptor is not None and target in DESCRIBED
    size, available = TYPES[dtype].itemsize, TARGETS[target].device.multiprocessors
    options = dict(glu=glu, described=described, followed=followed)
    chosen = choose(target, size, ROWS, COLUMNS, INPUTS, available=available, **options)
    return [chosen, *(tile for tile in tiles(target, size, **options) if tile != chosen)]


def cost(rows: int, inputs: int, columns: int, dtype: str, glu: bool, followed: bool) -> Cost:
    """x and the weight once each, as if L2 kept what tiles share; the result, and what follows it."""
    weight = columns * (2 if glu else 1) * inputs
    numbers = rows * inputs + weight + rows * columns * (2 if followed else 1)
    return Cost(2 * rows * weight, *[numbers * TYPES[dtype].itemsize] * 2)


def variants(target: str) -> Iterator[Entry]:
    """All of them for a target. float32 is no candidate of a call: products are exact there, and slow."""
    for dtype, glu, followed in itertools.product(USUAL, (False, True), (False, True)):
        for at, tile in enumerate(own_tiles(target, dtype, glu, followed)):
            detail = ", ".join([tile.said] + ["gated unit"] * glu + ["gate, residual"] * followed)
            launch = launched(target, dtype, tile, glu=glu, followed=followed)
            made = constant(cost(ROWS, INPUTS, COLUMNS, dtype, glu, followed))
            usual = at == 0 and dtype != "fp32"
            yield Entry("product", dtype, detail, usual, launch, f"{ROWS}x{INPUTS} to {COLUMNS}", made)
    for dtype in USUAL[1:]:
        rows, inputs, columns = FEW
        made = constant(cost(*FEW, dtype, False, False))
        shape = f"{rows}x{inputs} to {columns}"
        yield Entry("few", dtype, f"{rows} rows", True, few(target, dtype), shape, made)
