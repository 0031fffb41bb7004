"""Tables of the choice on GPUs: what measured files give, and that the package has what its own files give."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.bench import measured, tables
from fastdiff.bench.measured import Measured, MeasuredCase, Time
from fastdiff.runtime import measured_tables
from fastdiff.runtime.candidates import Row, family, is_ours
from fastdiff.runtime.shape_classes import MANY, bounds

pytest.importorskip("triton")

from fastdiff.bench.sweep_cases import names
from fastdiff.kernels import tables as command

FILES = sorted((Path(__file__).parents[1] / "benchmarks" / "measured").glob("*.json"))
HEAD, PROMPT, LONG = (
    "triton 128x64/8/3",
    {"dim": 40, "queries": 4096, "keys": 77},
    {"dim": 40, "queries": 4096, "keys": 4096},
)


def right(microseconds):
    return Time(microseconds, 1e-4, 2e-4)


def case(features=LONG, op="attention", graph=True, part="", **times):
    """times: with the name's underscores as blanks; a number is one that was right."""
    by_name = {"triton 128x64/8/3" if name == "tile" else name: t for name, t in times.items()}
    found = {name: t if isinstance(t, Time) else right(t) for name, t in by_name.items()}
    shape = tuple(features.values())
    return MeasuredCase(op, shape, "float16", str(shape), part, graph, features=features, times=found)


def file(*cases, architecture="sm_90", date="2026-01-01"):
    return Measured("a card", architecture, 132, 1 << 20, date, "a test", cases=list(cases))


def made(*files, known=None):
    return tables.make(files, lambda case, file: set(case.times) if known is None else known)


def test_the_quickest_of_a_class_is_its_row():
    found = made(file(case(cudnn=150.0, triton=300.0, tile=180.0, flash=270.0)))
    (row,) = found.rows
    assert row[:3] == ("attention", "sm_90", "half")
    assert row.bounds == (("dim", 33, 41), ("queries", 2048, MANY), ("keys", 2048, MANY))
    assert row.candidate == "cudnn"
    assert row.measured == "cudnn 150 us, triton 128x64/8/3 180 us, flash 270 us"
    assert (row.source, row.compared) == ("a card, in a graph", ("cudnn", "flash", "triton"))
    assert found.tiles == {("sm_90", "half", "forward"): [(row.bounds, (128, 64, 8, 3, False))]}
    assert found.timed == {("sm_90", "half"): [(40, (128, 64, 8, 3, False))]}
    assert found.left_out == []


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        (Time(1.0), "it was not checked"),
        (Time(1.0, 0.68, 4.4e-4), "its results are wrong: error 6.8e-01, allowed 4.4e-04"),
        (Time(1.0, 1e-4, None), "it was not checked"),
    ],
)
def test_a_tile_that_is_wrong_or_not_checked_is_refused(time, reason):
    found = made(file(case(PROMPT, tile=time, triton=20.0, cudnn=13.6)))
    assert found.left_out == [f"attention 40x4096x77 float16 (40, 4096, 77), triton 128x64/8/3: {reason}"]
    assert [row.candidate for row in found.rows] == ["cudnn"]
    assert "128x64" not in found.rows[0].measured
    assert (found.tiles, found.timed) == ({}, {})


def test_a_candidate_that_does_not_exist_is_refused():
    found = made(file(case(cudnn=150.0, triton=300.0, prototype=10.0)), known={"cudnn", "triton"})
    assert [row.candidate for row in found.rows] == ["cudnn"]
    assert found.left_out == ["attention 40x4096x4096 float16 (40, 4096, 4096), prototype: there is no such candidate"]
    unknown = tables.make([file(case(cudnn=1.0, triton=2.0))], lambda case, file: None)
    assert (unknown.rows, unknown.left_out) == (
        [],
        ["attention 40x4096x4096 float16 (40, 4096, 4096): a sweep has no such case"],
    )


def test_one_side_alone_decides_nothing():
    assert made(file(case(cudnn=13.6, flash=15.8))).rows == []
    assert made(file(case(triton=13.6, tile=15.8))).rows == []


NORM = {"numbers": 10_000_000, "channels_last": 0, "adaptive": 0}


@pytest.mark.parametrize(
    ("ours", "theirs", "counts"),
    [(82.0, 167.0, True), (82.0, 100.0, False), (40.0, 167.0, False), (167.0, 82.0, False)],
)
def test_times_of_launches_count_only_where_launches_do_not(ours, theirs, counts):
    rows = made(file(case(NORM, "group_norm_silu", graph=False, triton=ours, torch=theirs))).rows
    assert [row.source for row in rows] == ["a card, launched singly"] * counts
    graph = case(NORM, "group_norm_silu", triton=9.0, torch=8.0)
    both = made(file(case(NORM, "group_norm_silu", graph=False, triton=ours, torch=theirs), graph)).rows
    assert [(row.candidate, row.source) for row in both] == [("torch", "a card, in a graph")]
    assert made(file(case(graph=False, tile=100.0, cudnn=300.0))).tiles == {}
    near = NORM | {"numbers": 8_000_000}
    slower = case(near, "group_norm_silu", graph=False, triton=200.0, torch=150.0)
    clear = case(NORM, "group_norm_silu", graph=False, triton=60.0, torch=600.0)
    assert made(file(clear, slower)).rows == []  # not in every case of the class


def test_cases_of_a_class_are_weighed_together():
    longer = LONG | {"queries": 8192, "keys": 8192}
    found = made(file(case(cudnn=100.0, triton=110.0), case(longer, cudnn=500.0, triton=300.0, flash=1.0)))
    assert [(row.candidate, row.measured) for row in found.rows] == [("triton", "triton 182 us, cudnn 224 us")]
    assert found.rows[0].compared == ("cudnn", "triton")  # flash was not measured in both


def test_the_newest_file_counts():
    old, new = file(case(cudnn=100.0, triton=200.0)), file(case(cudnn=100.0, triton=50.0), date="2026-02-01")
    assert [row.candidate for row in made(new, old).rows] == ["triton"]
    other = file(case(cudnn=100.0, triton=150.0), architecture="sm_100", date="2026-03-01")
    assert [(row.architecture, row.candidate) for row in made(new, old, other).rows] == [
        ("sm_100", "cudnn"), ("sm_90", "triton")
    ]  # fmt: skip


def test_a_card_with_the_tables_of_another_has_rows_and_no_tiles():
    found = made(file(case(cudnn=150.0, tile=180.0), architecture="sm_86"))
    assert [row.architecture for row in found.rows] == ["sm_86"]
    assert (found.tiles, found.timed) == ({}, {})
    assert found.left_out == ["tiles of attention on sm_86: it has those of sm_80"]


def test_tiles_of_gradients_have_tables_of_their_own():
    apart = "triton 64x64/8/2 apart"
    dkv = MeasuredCase("attention", (1, 8, 4096, 40), "float16", "", "dkv", features=LONG)
    dkv.times = {apart: right(900.0), "triton 64x128/8/2": right(950.0)}
    found = made(file(dkv, case(part="dq", tile=800.0)))
    assert found.rows == []
    assert {key: tile for key, [(_, tile)] in found.tiles.items()} == {
        ("sm_90", "half", "dq"): (128, 64, 8, 3, False), ("sm_90", "half", "dkv"): (64, 64, 8, 2, True)
    }  # fmt: skip
    assert found.timed == {}


def test_tiles_near_the_quickest_are_timed():
    times = {"triton 64x64/4/3": right(10.0), "triton 64x32/4/3": right(10.4), "triton 128x64/8/2": right(12.0)}
    wide = MeasuredCase("attention", (1, 8, 256, 160), "float16", "", features=LONG | {"dim": 160}, times=times)
    found = made(file(case(tile=5.0, **{"triton 64x64/4/3": right(5.2)}), wide))
    assert found.timed["sm_90", "half"] == [
        (160, (64, 64, 4, 3, False)), (40, (128, 64, 8, 3, False)), (160, (64, 32, 4, 3, False))
    ]  # fmt: skip


def test_classes_of_shapes():
    assert bounds("attention", {"dim": 72, "queries": 1024, "keys": 77}) == (
        ("dim", 65, 73), ("queries", 513, 2048), ("keys", 65, 129)
    )  # fmt: skip
    assert bounds("another", {"rows": 5, "flag": 0, "one": 1}) == (("rows", 4, 8), ("flag", 0, 1), ("one", 1, 2))


def test_names_of_candidates():
    assert [family(name) for name in ("triton 128x64/8/3", "triton whole/4", "triton 8 parts/4", "cudnn", "64x64")] == [
        "triton", "triton", "triton", "cudnn", "64x64"
    ]  # fmt: skip
    assert [is_ours(name) for name in ("few_keys", "cudnn, sum by triton", "cudnn", "torch")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_row_does_not_decide_where_a_kernel_of_ours_was_not_compared():
    row = Row("sin", "sm_90", "half", (), "cudnn", "cudnn 1 us", "a card", ("cudnn", "triton"))
    assert row.decides(["cudnn", "triton", "triton 64x64/4/3", "torch", "flash"])
    assert not row.decides(["cudnn", "triton", "gluon 64/3"])
    assert not row.decides(["cudnn", "triton", "few_keys"])
    assert not row.decides(["triton", "torch"])
    assert row._replace(compared=()).decides(["cudnn", "gluon 64/3"])


# ---- the package's own ----


def test_the_module_is_what_the_command_makes_of_the_measured_files():
    assert len(FILES) >= 3
    made = command.made_from(FILES)
    assert Path(measured_tables.__file__).read_text(encoding="utf-8") == command.text(made)
    assert (tuple(made.rows), made.timed.keys()) == (measured_tables.ROWS, measured_tables.TIMED.keys())
    assert any("triton 128x128/4/1: its results are wrong: error 6.8e-01" in line for line in made.left_out)
    assert not any("prototype" in row.measured or "prototype" in row.candidate for row in made.rows)


def test_every_tile_of_the_tables_was_measured_and_right():
    right = set()
    for file in map(measured.load, FILES):
        for case in file.cases:
            if case.op == "attention" and case.graph and case.features:
                kernel, limits = case.part or "forward", bounds("attention", case.features)
                tiles = [tables.numbers_of(name) for name, time in case.times.items() if time.fault is None]
                right |= {(file.architecture, kernel, limits, tile) for tile in tiles}
    found = [
        (architecture, kernel, limits, tile)
        for (architecture, _, kernel), of_kernel in measured_tables.TILES.items()
        for limits, tile in of_kernel
    ]
    assert len(found) >= 6
    assert set(found) <= right


def test_a_file_of_another_card_is_tables_without_an_edit(tmp_path, capsys):
    source = measured.load(FILES[0].with_name("h100-attention.json"))
    source.architecture, source.device = "sm_80", "another card"
    measured.save(tmp_path / "other.json", source)
    out = tmp_path / "tables.py"
    assert command.main(["--out", str(out), str(tmp_path / "other.json")]) == 0
    said = capsys.readouterr()
    assert "triton 128x128/4/1: its results are wrong" in said.err
    module = {}
    exec(out.read_text(), module)
    assert {row.architecture for row in module["ROWS"]} == {"sm_80"}
    assert all(row.source == "another card, in a graph" for row in module["ROWS"])
    assert [key for key in module["TILES"]] == [("sm_80", "half", "forward")]


def test_the_command(tmp_path):
    run = [sys.executable, "-m", "fastdiff.kernels.tables"]
    same = subprocess.run([*run, "--check", *FILES], capture_output=True, text=True, check=False)
    assert (same.returncode, "is what these files give" in same.stdout) == (0, True), same.stderr
    fewer = subprocess.run([*run, "--check", FILES[0]], capture_output=True, text=True, check=False)
    assert (fewer.returncode, "is not what these files give" in fewer.stdout) == (1, True)
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    refused = subprocess.run([*run, bad], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert f"{bad} holds no measurements" in refused.stderr


def test_candidates_of_a_case_are_named_without_a_device():
    source = file(architecture="sm_90")
    known = MeasuredCase("attention", (2, 8, 4096, 40), "float16", "77 keys")
    assert {"torch", "cudnn", "triton", "triton 128x64/8/3"} <= names(known, source)
    assert "triton 128x128/4/1" not in names(known, source)
    assert "triton 64x64/8/3 apart" in names(
        MeasuredCase("attention", (2, 8, 4096, 40), "float16", "4096 keys", "dkv"), source
    )
    assert names(MeasuredCase("attention", (7, 8, 4096, 40), "float16", "77 keys"), source) is None
    norm = names(MeasuredCase("group_norm_silu", (2, 320, 64, 64), "float16", "channels last"), source)
    assert {"triton", "torch"} < norm
