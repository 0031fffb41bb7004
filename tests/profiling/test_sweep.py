"""Whole sweeps on a model that is quick to call: what is measured, what fails alone, which files come of it."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

import fastdiff


def by_label(found):
    return {row["label"]: row for row in found.rows}


def test_a_sweep(tmp_path, data):
    progress = []
    found = fastdiff.profile(
        toy.subject, **toy.QUICK, data=data, features="pixels", out=tmp_path, on_progress=lambda *p: progress.append(p)
    )
    rows = by_label(found)
    assert len(rows) == 6
    assert found.complete
    for solver in toy.QUICK["solvers"]:
        errors = [rows[f"{solver}, {steps} steps"]["rmse"]["value"] for steps in toy.QUICK["steps"]]
        assert errors == sorted(errors, reverse=True)
    assert rows["dpmpp-2m, 16 steps"]["rmse"]["value"] < rows["ddim, 16 steps"]["rmse"]["value"]
    row = rows["ddim, 8 steps"]
    assert (row["calls"], row["evaluations"], row["samples"], row["rounds"]) == (8, 8, 12, 3)
    assert row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
    assert row["rmse"]["low"] <= row["rmse"]["value"] <= row["rmse"]["high"]
    assert row["psnr"] == pytest.approx(20 * np.log10(2 / row["rmse"]["value"]))
    assert row["frechet"]["count"] == 12
    (reference,) = found.facts["references"]
    assert 0 < reference["error"] < rows["dpmpp-2m, 16 steps"]["rmse"]["value"]
    assert progress[-1][0] == "done"
    assert progress[-1][1] == pytest.approx(progress[-1][2])
    assert all(a[1] <= b[1] for a, b in pairwise(progress))


def test_what_is_measured_is_the_distance_to_the_exact_solution(tmp_path):
    """Against a run of another solver with many steps, in float64."""
    found = fastdiff.profile(
        toy.unconditional, solvers=["heun"], steps=[6], samples=4, reference_steps=256, out=tmp_path
    )
    (row,) = found.rows
    size = row["compared"]
    common = dict(schedule=toy.SCHEDULE, prediction="eps", seed=0)
    x = torch.cat([fastdiff.sample(toy.Toy(), (size, *toy.SHAPE), solver="heun", steps=6, **common)])
    start = fastdiff.noise.CounterNoise.of(0, size).initial((size, *toy.SHAPE), torch.float64)
    exact = fastdiff.sample(toy.Toy().double(), start, solver="dpmpp-3m", steps=500, **common)
    expected = float((x - exact).square().mean().sqrt())
    (reference,) = found.facts["references"]
    assert row["rmse"]["value"] == pytest.approx(expected, abs=2 * reference["error"] + 1e-5)


def test_the_files(tmp_path, data):
    found = fastdiff.profile(toy.subject, **toy.QUICK, data=data, out=tmp_path)
    facts = json.loads((tmp_path / "results.json").read_text())
    assert facts["rows"] == json.loads(json.dumps(found.rows))
    assert facts["facts"] == json.loads(json.dumps(found.facts))
    assert facts["facts"]["torch"] == torch.__version__
    assert facts["facts"]["seed"] == 0
    with open(tmp_path / "results.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(r["rmse"]) for r in table] == [row["rmse"]["value"] for row in found.rows]
    assert [r["solver"] for r in table] == [row["setting"]["solver"] for row in found.rows]
    for name in ("speed-quality.png", "front.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "12 samples" in page
    assert "FID" not in page.replace("no FID", "").replace("not FID", "")[: page.index("<script")]
    assert not list(tmp_path.glob(".*"))


def test_the_line_of_python_runs_and_gives_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(toy.__file__).parent))
    found = fastdiff.profile("toy:subject", solvers=["heun"], steps=[5], guidance=[2.0], samples=4, reference_steps=8,
                             out=tmp_path)  # fmt: skip
    space = {"fastdiff": fastdiff, "torch": torch}
    exec(found.line, space)
    assert space["x"].shape == (9, *toy.SHAPE)
    assert "guidance=2" in found.line


def test_one_that_fails_is_a_row_and_the_others_go_on(tmp_path):
    found = fastdiff.profile(
        toy.subject, solvers=["ddim"], steps=[4], batches=[2, 3], samples=12, reference_steps=8, out=tmp_path
    )
    good, bad = found.rows
    assert good["error"] == ""
    assert good["rounds"] == 3
    assert "batches of 3 are too much" in bad["error"]
    assert bad["seconds"] is None
    assert "batches of 3 are too much" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert found.picked is found.rows[0]


def test_stochastic_settings_have_no_trajectory_but_a_distribution(tmp_path, data):
    found = fastdiff.profile(toy.subject, solvers=["ddpm"], steps=[6], samples=12, reference_steps=8, data=data,
                             out=tmp_path)  # fmt: skip
    (row,) = found.rows
    assert row["rmse"] is None
    assert "draws noise" in row["note"]
    assert row["kid"]["count"] == 12
    assert found.picked is row  # by the distance of the distributions


def test_all_that_can_be_swept(tmp_path):
    found = fastdiff.profile(
        toy.subject, solvers=["ddim"], steps=[4], guidance=[1.0, 2.0], intervals=[None, (-1.0, 2.0)],
        thresholds=[None, 1.0, fastdiff.Threshold(1, 0.9)], precisions=["float32", "bfloat16"],
        grids=[None, "karras"], backends=["auto", "reference"], samples=3, reference_steps=8, out=tmp_path,
    )  # fmt: skip
    assert len(found.rows) == 3 * 3 * 2 * 2 * 2
    assert not [row["error"] for row in found.rows if row["error"]]
    assert len(found.facts["references"]) == 9  # one for every guidance and threshold

    def error(**wanted):
        return next(r["rmse"]["value"] for r in found.rows if {**r["setting"], **wanted} == r["setting"])

    same = dict(guidance=1.0, threshold=None, grid=None, interval=None)
    assert error(**same, precision="float32", backend="auto") == pytest.approx(
        error(**same, precision="float32", backend="reference"), rel=1e-4
    )
    assert error(**same, precision="bfloat16", backend="auto") != error(**same, precision="float32", backend="auto")
