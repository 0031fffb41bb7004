"""Whole sweeps on a model that is quick to call: what is measured, what fails alone, stopping and going on."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

import fastdiff
from fastdiff.models import bundled
from fastdiff.profiling import get_extractor, get_subject
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.store import Store
from fastdiff.profiling.usage import python_line

QUICK = dict(solvers=["ddim", "dpmpp-2m"], steps=[4, 8, 16], samples=12, reference_steps=128)


@pytest.fixture
def data():
    """Pictures of the toy's distribution."""
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (60, *toy.SHAPE), generator=generator) * 2 - 1
    return 0.6 * signs + 0.2 * torch.randn(signs.shape, generator=generator)


def by_label(found):
    return {row["label"]: row for row in found.rows}


def test_a_sweep(tmp_path, data):
    progress = []
    found = fastdiff.profile(
        toy.subject, **QUICK, data=data, features="pixels", out=tmp_path, on_progress=lambda *p: progress.append(p)
    )
    rows = by_label(found)
    assert len(rows) == 6
    assert found.complete
    for solver in QUICK["solvers"]:
        errors = [rows[f"{solver}, {steps} steps"]["rmse"]["value"] for steps in QUICK["steps"]]
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
    found = fastdiff.profile(toy.subject, **QUICK, data=data, out=tmp_path)
    facts = json.loads((tmp_path / "results.json").read_text())
    assert facts["rows"] == json.loads(json.dumps(found.rows))
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


class Stop:
    """Raises KeyboardInterrupt at the n-th thing that is told."""

    def __init__(self, after):
        self.left = after

    def __call__(self, what, done, total):
        self.left -= what.startswith("round")
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, data):
    with pytest.raises(KeyboardInterrupt):
        fastdiff.profile(toy.subject, **QUICK, data=data, out=tmp_path / "a", on_progress=Stop(8))
    facts = json.loads((tmp_path / "a" / "results.json").read_text())
    assert not facts["facts"]["complete"]
    assert sum(row["rounds"] for row in facts["rows"]) == 8
    assert "interrupted" in (tmp_path / "a" / "index.html").read_text(encoding="utf-8")

    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "work").iterdir()}
    torn = next(path for path in done if "round0" in path.name)
    torn.write_bytes(torn.read_bytes()[:50])  # as after a power cut on a file system that does not keep order
    resumed = fastdiff.profile(toy.subject, **QUICK, data=data, out=tmp_path / "a", resume=True)
    assert resumed.complete
    assert all(path.stat().st_mtime_ns == when for path, when in done.items() if path != torn)
    whole = fastdiff.profile(toy.subject, **QUICK, data=data, out=tmp_path / "b")
    for a, b in zip(resumed.rows, whole.rows):
        for key in ("label", "rmse", "ssim", "frechet", "kid", "precision", "samples", "calls"):
            assert a[key] == b[key]


def test_resuming_may_add_settings_but_not_change_what_is_measured(tmp_path):
    fastdiff.profile(toy.subject, solvers=["ddim"], steps=[4], samples=6, reference_steps=8, out=tmp_path)
    more = dict(solvers=["ddim"], steps=[4, 5], samples=6, reference_steps=8, out=tmp_path)
    with pytest.raises(ValueError, match="holds a sweep already; go on with it by --resume"):
        fastdiff.profile(toy.subject, **more)
    assert [row["rounds"] for row in fastdiff.profile(toy.subject, **more, resume=True).rows] == [3, 3]
    with pytest.raises(ValueError, match="was made with seed 0, not 1"):
        fastdiff.profile(toy.subject, **more, resume=True, seed=1)


KILLED = """
import sys, toy, fastdiff
fastdiff.profile(toy.subject, solvers=["ddim"], steps=[4, 6], samples=3000, reference_steps=8, out=sys.argv[1])
"""


def test_a_killed_sweep_leaves_whole_files_and_no_more(tmp_path):
    folder = tmp_path / "sweep"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], env={**os.environ, "PYTHONPATH": str(Path(toy.__file__).parent)}
    )

    def whole():  # what is being written has a hidden name, and nobody reads it
        return [path for path in folder.glob("work/*round*.npz") if not path.name.startswith(".")]

    for _ in range(400):
        time.sleep(0.05)
        if len(whole()) > 6:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(folder)
    units = whole()
    assert len(units) > 6
    for path in units:
        slug, number = path.stem.rsplit("-round", 1)
        assert store.load(slug, int(number)).seconds > 0


def test_a_full_disk_is_said_and_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"No space left"):
        fastdiff.profile(toy.subject, solvers=["ddim"], steps=[4], samples=3, reference_steps=8, out=tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["plan.json"]


def test_the_time_decides_how_many_samples(tmp_path):
    plans = []
    options = dict(solvers=["ddim"], steps=[4], reference_steps=8, on_plan=lambda plan, count: plans.append(plan))
    fastdiff.profile(toy.subject, minutes=1e-6, out=tmp_path / "a", **options)
    fastdiff.profile(toy.subject, minutes=0.02, out=tmp_path / "b", **options)
    few, many = plans
    assert few.samples == 12
    assert many.samples > few.samples
    assert many.seconds <= 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "vgg"}, "unknown feature extractor 'vgg'"),
        ({"features": "toy:nothing"}, "toy has no 'nothing'"),
        ({"data": "nowhere"}, "data must be a folder of pictures"),
        ({"reference_steps": 30}, "reference_steps must be a multiple of 4"),
        ({"budget": "soon"}, "a time must be like"),
        ({"solvers": ["dimm"]}, "unknown solver"),
        ({"samples": 0}, "samples must be >= 1"),
    ],
)
def test_bad_arguments_are_said_before_anything_is_done(options, message, tmp_path):
    toy.CALLS.clear()
    with pytest.raises(ValueError, match=message):
        fastdiff.profile(toy.subject, **{"out": tmp_path / "x", **options})
    assert not (tmp_path / "x").exists()
    assert not toy.CALLS


def test_guidance_needs_something_to_leave_out(tmp_path):
    with pytest.raises(ValueError, match="guidance 2 needs a model with a condition"):
        fastdiff.profile(toy.unconditional, solvers=["ddim"], steps=[4], guidance=[2.0], out=tmp_path / "x")


def test_models_by_name():
    assert get_subject("toy:subject").name == "toy"
    assert get_subject(f"{toy.__file__}:unconditional").shape == toy.SHAPE
    for name, message in (
        ("emoji", "unknown model 'emoji'"),
        ("toy:nothing", "has no 'nothing'"),
        ("no_such:f", "No module"),
    ):
        with pytest.raises(ValueError, match=message):
            get_subject(name)
    with pytest.raises(TypeError, match=r"must return a profiling\.Subject"):
        get_subject(lambda: 3)


def test_a_diffusers_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="belongs to the diffusers extra")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipe")
    found = fastdiff.profile(
        str(tmp_path / "pipe"), solvers=["ddim"], steps=[2], samples=3, reference_steps=8, out=tmp_path / "out"
    )
    (row,) = found.rows
    assert row["error"] == ""
    subject = get_subject(str(tmp_path / "pipe"))
    assert subject.prediction.name == "v"
    space = {"fastdiff": fastdiff, "torch": torch}
    exec(found.line, space)
    assert space["x"].shape == (9, 3, 8, 8)


def test_the_bundled_extractor():
    extractor = get_extractor("emoji")
    data = extractor.data
    assert data.shape[1] == 64
    np.testing.assert_allclose(data.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(data.std(0), 1, atol=0.01)
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    assert extractor(x).shape == (3, 64)
    assert extractor(torch.nn.functional.interpolate(x, scale_factor=2)).shape == (3, 64)
    assert sum(extractor.class_shares) == pytest.approx(1, abs=1e-6)


def test_a_damaged_extractor_is_named(tmp_path):
    from fastdiff.profiling.features import emoji_extractor, weights_path

    path = tmp_path / "emoji-features.safetensors"
    path.write_bytes(weights_path().read_bytes()[:-100])
    with pytest.raises(fastdiff.WeightsError, match=r"emoji-features\.safetensors"):
        emoji_extractor(path)


@pytest.mark.parametrize("backend", ["auto", "optimize"])
@pytest.mark.parametrize("name", bundled.names())
def test_the_line_for_a_bundled_model_runs(name, backend):
    subject = get_subject(name)
    setting = Setting("ddim", 2, guidance=subject.guidance, backend=backend)
    assert setting.guidance > 1
    space = {"torch": torch, "fastdiff": fastdiff}
    exec(python_line(subject, setting, count=3), space)
    assert space["x"].shape == (3, *subject.shape)
    cond, uncond = subject.conditions_of(0, 3)
    expected = fastdiff.sample(
        subject.model, (3, *subject.shape), solver="ddim", steps=2, seed=0, guidance=subject.guidance, uncond=uncond,
        cond=cond if subject.about.get("prompts") else subject.model.info.condition(
            list(subject.about["classes"][:3]), 3),
    )  # fmt: skip
    torch.testing.assert_close(space["x"], expected, rtol=1e-3, atol=1e-3)
    assert subject.pictures(space["x"]).shape[1] == 3


def test_bundled_model_classes_are_those_of_the_data():
    subject = get_subject("emoji-unet-32")
    cond, uncond = subject.conditions_of(0, 400)
    shares = torch.bincount(cond["y"], minlength=9) / 400
    np.testing.assert_allclose(shares, get_extractor("emoji").class_shares, atol=0.01)
    again, _ = subject.conditions_of(37, 5)
    assert torch.equal(again["y"], cond["y"][37:42])
    assert (uncond["y"] == 9).all()
