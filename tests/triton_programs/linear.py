"""Products with what follows them: numbers in the interpreter, candidates, compilation ahead of time."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import torch
from checks import assert_fits, assert_no_worse
from pointwise import check
from torch import Tensor

from fastdiff import ops, use
from fastdiff.kernels.linear import MOST, Tile, choice_of, linear, tiles_of
from fastdiff.kernels.linear.tiles import HALF, SINGLE, choose, tiles
from fastdiff.ops.candidates import linear as candidates_of_linear
from fastdiff.runtime import device

DTYPES = (torch.float32, torch.float16)
H100 = device.Device("sm_90", 132, 50 << 20, "sm_90")
POINTERS = Tile(16, 32, 16, 4, 2)
DESCRIBED = POINTERS._replace(described=True)
# Gate and residual, each by itself; "rows": one gate a row; "strided": not contiguous.
AFTER = ((None, None), ("one", None), ("rows", "strided"), ("one", "rows"), (None, "rows"))


def make(
    shape: tuple[int, int, int, int], dtype: torch.dtype, glu: bool, bias: bool, gate: str | None, residual: str | None
) -> dict[str, Any]:  # fmt: skip
    batch, tokens, inputs, columns = shape
    outputs = 2 * columns if glu else columns
    numbers = {
        "x": torch.randn(batch, tokens, inputs),
        "weight": torch.randn(outputs, inputs) / max(1, inputs) ** 0.5,
        "bias": torch.randn(outputs) if bias else None,
        "gate": None if gate is None else torch.randn(batch, 1 if gate == "one" else tokens, columns),
        "residual": None
        if residual is None
        else torch.randn(batch, tokens, columns + (5 if residual != "rows" else 0)),
    }
    found = {name: None if t is None else t.to(dtype) for name, t in numbers.items()}
    if residual == "strided":
        found["residual"] = found["residual"][..., 5:]
    return found


def compare(given: dict[str, Any], tile: Tile | None, **options: Any) -> Tensor:
    """With the rule of numerics; the result."""
    exact = ops.linear.plain(**{name: None if t is None else t.double() for name, t in given.items()}, **options)
    theirs = ops.linear.plain(**given, **options)
    ours = linear(**given, **options, tile=tile)
    single, eps = torch.finfo(torch.float32).eps, torch.finfo(ours.dtype).eps
    floor = float(exact.abs().max()) * (eps + 8 * single) if exact.numel() else 0.0
    assert ours.is_contiguous()
    shapes = [None if t is None else (*t.shape, *t.stride()) for t in given.values()]
    assert_no_worse(ours, theirs, exact, floor, shapes, ours.dtype, tile, options)
    return ours


def numbers() -> None:
    """All that can follow, with tiles at the edges and shapes that fill none."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    shapes = [(2, 13, 40, 24), (1, 37, 7, 65), (3, 5, 64, 1), (2, 0, 8, 8), (1, 9, 1, 5)]
    activations = ["none", "silu", "gelu", "gelu_tanh"]
    for number, (shape, dtype, activation, glu) in enumerate(
        itertools.product(shapes, DTYPES, activations, [False, True])
    ):
        gate, residual = AFTER[number % len(AFTER)]
        given = make(shape, dtype, glu, number % 3 > 0, gate, residual)
        one = compare(given, POINTERS, activation=activation, glu=glu)
        again = linear(**given, activation=activation, glu=glu, tile=POINTERS)
        assert torch.equal(one, again)
    compare(make((1, 70, 100, 130), torch.float32, False, True, "one", "rows"), None)


def described() -> None:
    """By tensor descriptors the same numbers to the bit, and by pointers where these cannot be."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    with mock.patch.object(device, "ABSENT", H100):
        for shape, dtype, glu, (gate, residual) in itertools.product(
            [(2, 13, 48, 24), (1, 37, 64, 72)], DTYPES, [False, True], AFTER
        ):
            given = make(shape, dtype, glu, True, gate, residual)
            by_tiles = [compare(given, tile, activation="gelu", glu=glu) for tile in (DESCRIBED, POINTERS)]
            assert torch.equal(*by_tiles)
        wide = make((2, 13, 48, 24), torch.float16, False, True, None, None)
        part = wide | {"x": wide["x"][..., 16:], "weight": wide["weight"][:, 16:]}
        assert torch.equal(compare(part, DESCRIBED), compare(part, POINTERS))
        odd = wide | {"x": wide["x"][..., 3:], "weight": wide["weight"][:, 3:]}
        with mock.patch("fastdiff.kernels.linear.launch.TensorDescriptor", None):
            compare(wide, DESCRIBED)
            assert not any(tile.described for tile in tiles_of(wide["x"], wide["weight"], False))
        compare(odd, DESCRIBED)
        assert not choice_of(odd["x"], odd["weight"], False).described
        assert choice_of(part["x"], part["weight"], True).described


def strides() -> None:
    """x and gates as models have them: columns of wider tensors, steps, one row for all samples, transposed weights."""
    torch.manual_seed(0)
    given = make((3, 11, 24, 20), torch.float16, False, True, "one", None)
    x = torch.randn(3, 11, 72).half()
    gates = torch.randn(3, 1, 120).half().chunk(6, -1)
    for other in (
        x[..., 24:48],
        x[..., ::3],
        x[:, :, :24].transpose(0, 1).contiguous().transpose(0, 1),
        x[:1, :, :24].expand(3, 11, 24),
    ):
        compare(given | {"x": other}, POINTERS)
        compare(given | {"x": other, "gate": gates[2]}, None, activation="silu")
    for weight in (
        torch.randn(24, 20).half().t(),
        torch.randn(20, 48).half()[:, ::2],
        torch.randn(20, 48).half()[:, 7:31],
    ):
        compare(given | {"weight": weight}, POINTERS)


def few() -> None:
    """1 to 8 rows, in samples or not; one row more has tiles."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    for number, (rows, inputs, dtype) in enumerate(itertools.product(range(1, MOST + 2), (130, 7), DTYPES)):
        gate, residual = AFTER[number % len(AFTER)]
        for batch, tokens in {(rows, 1), (1, rows), (rows // 2, 2)} - {(0, 2)}:
            given = make((batch, tokens, inputs, 19), dtype, False, rows % 2 == 0, gate, residual)
            compare(given, None, activation="silu" if rows % 3 else "none")


def candidates() -> None:
    """Which there are, in which order, and that all agree."""
    torch.manual_seed(0)
    assert candidates_of_linear._FEW == MOST

    def names(
        device_: device.Device, shape: tuple[int, int, int, int], dtype: torch.dtype, **options: Any
    ) -> list[str]:
        glu = options.get("glu", False)
        given = make(
            shape, dtype, glu, options.pop("bias", True), options.pop("gate", None), options.pop("residual", None)
        )
        a = ops.linear.Arguments(**given, **options)
        with use("triton"), mock.patch.object(device, "ABSENT", device_):
            found = ops.linear.candidates(a)
            assert len({c.name for c in found}) == len(found)
            if shape[3] < 1000:
                check(ops.linear, a, found)
        return [c.name for c in found]

    half, unit = torch.float16, dict(activation="gelu", glu=True)
    a100 = device.Device("sm_80", 108, 40 << 20, "sm_80")
    assert names(H100, (2, 9, 32, 40), half, **unit)[:3] == ["triton", "triton 128x64x64/8/3", "cublas, gate by triton"]
    assert names(H100, (1, 9, 1280, 8), half, **unit)[:2] == ["cublas, gate by triton", "torch"]
    assert names(a100, (2, 9, 32, 40), half, **unit) == ["cublas, gate by triton", "torch", "triton"]
    assert names(H100, (2, 9, 32, 40), torch.float32, **unit) == ["cublas, gate by triton", "torch"]
    assert names(H100, (2, 9, 32, 40), half, gate="one", residual="rows")[0] == "triton"
    found = names(H100, (1, 9, 1280, 8), half, residual="rows", bias=False)
    assert found[:2] == ["torch", "cublas with residual"]
    assert "triton" in found
    assert names(H100, (1, 9, 32, 8), half, activation="gelu_tanh")[:2] == ["torch", "cublas with gelu"]
    assert names(H100, (1, 9, 32, 40), half) == ["torch"]
    assert names(H100, (2, 1, 1152, 1024), half) == ["triton", "torch"]
    assert names(a100, (2, 1, 1152, 1024), half) == ["torch", "triton"]
    assert names(H100, (2, 1, 24, 40), half) == ["torch"]
    assert names(H100, (2, 9, 28, 40), half, **unit) == ["cublas, gate by triton", "torch"]  # rows of 28


def tables() -> None:
    """The tiles that were the quickest for a shape are those that are chosen; all others are candidates."""
    size = {"available": 132, "described": True}
    for rows, columns, inputs, glu, said in (
        (8192, 320, 320, False, "128x64x64/4/4"), (2048, 640, 640, False, "tma 64x128x64/4/4"),
        (512, 1152, 1152, False, "tma 128x64x64/4/5"), (8192, 1280, 320, True, "tma 128x128x64/8/3"),
    ):  # fmt: skip
        assert choose("sm_90", 2, rows, columns, inputs, glu=glu, **size).said == said
    for (architecture, glu), found in HALF.items():
        assert len(set(found)) == len(found)
        assert any(not tile.described for tile in found)
        assert all(not tile.described for tile in tiles(architecture, 2, glu, described=False))
        assert tiles(architecture, 4, glu, described=True) == [SINGLE]
        plain = dict(glu=glu, described=False, available=132)
        assert not choose(architecture, 2, 512, 1152, 1152, **plain).described


def compiles(target: str) -> None:
    """Every tile with what may follow, rows of other lengths, and the rows that are few."""
    from fastdiff.kernels.linear.variants import few, launched, own_tiles

    for dtype, glu, inputs, followed in itertools.product(
        ("fp16", "bf16", "fp32"), (False, True), (320, 336, 77), (False, True)
    ):
        if (dtype == "bf16" and not followed) or (inputs != 320 and dtype != "fp16"):  # as float16
            continue
        found: list[Tile | None] = [None] if inputs == 77 else [*own_tiles(target, dtype, glu, followed)]
        if target in ("sm_90", "sm_100") and inputs != 77 and dtype != "fp32" and not (glu and followed):
            assert any(tile is not None and tile.described for tile in found)
        for tile in found:
            launch = launched(target, dtype, tile, glu=glu, followed=followed, inputs=inputs)
            usage = assert_fits(launch, dtype, glu, inputs, tile)
            if dtype != "fp32" and inputs != 77:
                assert usage.matrix_instruction, (target, tile)
    for rows, dtype in itertools.product((1, 2, 8), ("fp16", "bf16")):
        launch = few(target, dtype, rows)
        assert_fits(launch, rows, dtype)
        assert launch.name == "linear_few"
