"""`fastdiff.distributed.sample`: what is in the store, the same bits whoever makes it, and what is refused."""

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import small_job
import torch
from PIL import Image

import fastdiff
from fastdiff import distributed, pictures
from fastdiff.distributed import api, manifest
from fastdiff.distributed.statistics import Sums, frechet, total
from fastdiff.profiling import distances


def make(out, **options):
    return distributed.sample(small_job.MODEL, out, **{**small_job.JOB, **options})


def samples_of(folder):
    """Of the npz files, in order; each sample is there once."""
    found, expected = [], 0
    for path in sorted((Path(folder) / "samples").glob("*.npz")):
        with np.load(path) as file:
            assert file["first"] == expected
            found.append(file["samples"])
            expected += len(file["samples"])
    return np.concatenate(found)


def test_the_samples_are_those_of_fastdiff_sample(tmp_path):
    found = make(tmp_path / "out")
    subject = small_job.subject()
    rows = []
    for start in range(0, 24, 4):
        cond, _ = subject.conditions_of(start, 4)
        given = dict(solver="ddim", steps=3, seed=0, first_sample=start, cond=cond)
        shape = (4, *small_job.SHAPE)
        rows.append(fastdiff.sample(subject.model, shape, schedule=small_job.SCHEDULE, prediction="eps", **given))
    expected = torch.cat(rows)[:22].numpy()
    assert np.array_equal(samples_of(tmp_path / "out"), expected)
    assert found.samples == 22
    assert len(found.sha256) == 64
    assert found.failed == {}
    assert found.kinds[0].startswith("CPU, ")
    assert sum(each.units for each in found.workers.values()) == 6


def test_a_sample_has_the_same_bits_however_the_work_is_cut(tmp_path):
    """The batch is the same, the shards, the beginning and the end are not. With another batch roundings may differ."""
    make(tmp_path / "a")
    make(tmp_path / "b", shard=12)
    make(tmp_path / "c", first=7, count=9, shard=8)
    whole = samples_of(tmp_path / "a")
    assert np.array_equal(samples_of(tmp_path / "b"), whole)
    parts = [np.load(path)["samples"] for path in sorted((tmp_path / "c" / "samples").iterdir())]
    assert [len(part) for part in parts] == [1, 8]
    assert np.array_equal(np.concatenate(parts), whole[7:16])


def test_worker_processes_make_the_same_store(tmp_path):
    threads = torch.get_num_threads()
    one = make(tmp_path / "one")
    two = make(tmp_path / "two", workers=2, threads=threads)
    assert two.sha256 == one.sha256
    assert two.kinds == one.kinds
    for path in (tmp_path / "one" / "samples").iterdir():
        assert (tmp_path / "two" / "samples" / path.name).read_bytes() == path.read_bytes()


def test_pictures_and_tars(tmp_path):
    make(tmp_path / "npz")
    make(tmp_path / "png", format="png")
    make(tmp_path / "tar", format="webdataset")
    expected = pictures.to_uint8(torch.from_numpy(samples_of(tmp_path / "npz")))
    paths = sorted((tmp_path / "png" / "samples").rglob("*.png"))
    assert [path.stem for path in paths] == [f"{k:09d}" for k in range(22)]
    assert paths[5].parent.name == "000000004-000000007"
    for path, pixels in zip(paths, expected):
        assert np.array_equal(np.array(Image.open(path)), pixels)
    seen = 0
    for path in sorted((tmp_path / "tar" / "samples").iterdir()):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            for k in range(seen, seen + len(names) // 2):
                about = json.load(tar.extractfile(f"{k:09d}.json"))
                assert about == {"model": "small", "seed": 0, "sample": k, "number": k}
                content = tar.extractfile(f"{k:09d}.png").read()
                assert np.array_equal(np.array(Image.open(io.BytesIO(content))), expected[k])
            seen += len(names) // 2
    assert seen == 22


def test_prompts_and_classes_are_given_in_turn(tmp_path):
    small = dict(count=5, batch=2, shard=2, steps=2, seed=3)
    for model, names, guidance in (
        ("emoji-dit-64", ["people", "animals", "food"], 1.5),
        ("emoji-ldm-64", ["red heart", "a cat"], 2.0),
    ):
        out = tmp_path / model
        found = distributed.sample(model, out, **small, prompts=names, guidance=guidance, format="webdataset")
        assert found.samples == 5
        told = []
        for path in sorted((out / "samples").glob("*.tar")):
            with tarfile.open(path) as tar:
                told += [json.load(tar.extractfile(each)) for each in tar if each.name.endswith(".json")]
        assert [each["prompt"] for each in told] == [names[k % len(names)] for k in range(5)]
    network = fastdiff.load("emoji-ldm-64")
    batches = []
    for start in (0, 2, 4):
        cond, uncond = network.info.condition(["red heart", "a cat"], 2), network.info.condition(None, 2)
        batches.append(
            fastdiff.sample(
                network, (2, *network.info.shape), cond=cond, uncond=uncond, guidance=2.0, steps=2, seed=3,
                first_sample=start,
            )
        )  # fmt: skip
    distributed.sample("emoji-ldm-64", tmp_path / "npz", **small, prompts=["red heart", "a cat"], guidance=2.0)
    torch.testing.assert_close(torch.from_numpy(samples_of(tmp_path / "npz")), torch.cat(batches)[:5])
    again = distributed.sample(None, tmp_path / "npz", resume=True)  # JSON has lists where Python may have tuples
    assert again.samples == 5


@pytest.mark.parametrize(
    ("model", "prompts", "message"),
    [
        ("emoji-dit-64", ["people", "peeple"], "unknown class 'peeple'; did you mean"),
        ("emoji-ldm-64", "a zzyzx", "zzyzx"),
        ("emoji-dit-64", [], "prompts must not be empty"),
        (small_job.MODEL, "food", "has its conditions: prompts are for bundled models and folders"),
    ],
)
def test_prompts_that_a_model_does_not_take(tmp_path, model, prompts, message):
    with pytest.raises(ValueError, match=message):
        distributed.sample(model, tmp_path / "out", count=2, prompts=prompts)
    assert not list((tmp_path / "out").rglob("*.npz"))


def test_prompts_are_texts_and_not_for_a_subject(tmp_path):
    with pytest.raises(TypeError, match="prompts must be a text or a list of texts, got 7"):
        distributed.sample("emoji-dit-64", tmp_path / "a", count=2, prompts=7)
    with pytest.raises(ValueError, match="a Subject has its conditions, leave prompts out"):
        distributed.sample(small_job.subject(), tmp_path / "b", **small_job.JOB, prompts="food")


def test_records_name_every_file_with_its_hash(tmp_path):
    make(tmp_path, format="png", features="pixels")
    named = {}
    for path in (tmp_path / "records").iterdir():
        named |= json.loads(path.read_text())["files"]
    there = {path for folder in ("samples", "statistics") for path in (tmp_path / folder).rglob("*") if path.is_file()}
    assert {tmp_path / name for name in named} == there
    for name, about in named.items():
        content = (tmp_path / name).read_bytes()
        assert about == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


@pytest.mark.parametrize("kept", ["features", "moments"])
def test_statistics_are_those_of_all_samples(tmp_path, kept):
    found = make(tmp_path / "out", format="none", features="pixels", statistics=kept)
    make(tmp_path / "npz")
    x = samples_of(tmp_path / "npz").reshape(22, -1).astype(np.float64)
    assert found.statistics == {"features": "pixels", "dimensions": 192, "samples": 22}
    assert not (tmp_path / "out" / "samples").exists()
    with np.load(tmp_path / "out" / "moments.npz") as moments:
        assert moments["count"] == 22
        np.testing.assert_allclose(moments["mean"], x.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(moments["covariance"], np.cov(x, rowvar=False), rtol=1e-9, atol=1e-12)


def test_the_frechet_distance_from_moments_is_that_of_the_samples():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), distances.Moments.of(rng.normal(1, 2, (80, 5)))
    sums = total(Sums.of(part) for part in np.split(x, [1, 20, 45]))
    assert frechet(sums, y) == pytest.approx(distances.frechet(x, y), rel=1e-10)


def test_going_on_makes_what_is_missing(tmp_path):
    whole = make(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").iterdir()}
    gone, torn, unsaid = sorted(kept)[1:4]
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:100])
    record = tmp_path / "records" / f"{unsaid.stem}.json"
    record.write_bytes(record.read_bytes()[:30])
    told = []
    again = distributed.sample(None, tmp_path, resume=True, on_progress=told.append)
    assert again.sha256 == whole.sha256
    assert told[-1].made == 3
    assert told[-1].done == told[-1].units == 6
    for path, when in kept.items():
        assert (path.stat().st_mtime_ns == when) == (path not in (gone, torn, unsaid))


def test_a_subject_can_be_given_to_this_process_alone(tmp_path):
    found = distributed.sample(small_job.subject(), tmp_path / "a", **small_job.JOB)
    assert found.sha256 == make(tmp_path / "b").sha256
    with pytest.raises(ValueError, match="a Subject cannot be sent to other processes"):
        distributed.sample(small_job.subject(), tmp_path / "c", **small_job.JOB, workers=1)


def test_a_store_in_memory(tmp_path):
    pytest.importorskip("fsspec")
    assert make(f"memory://{tmp_path.name}", features="pixels").sha256 == make(tmp_path).sha256


def test_what_no_job_could_be_is_refused(tmp_path):
    for options, message in (
        ({"count": 0}, "count must be a whole number >= 1, got 0"),
        ({"shard": 6}, r"shard must be a multiple of batch \(4\), got 6"),
        ({"format": "jpeg"}, "unknown format 'jpeg'"),
        ({"format": "none"}, "nothing would be kept"),
        ({"solver": "dimm"}, "unknown solver 'dimm'; did you mean"),
        ({"solver": "rk45", "steps": 20}, "steps: rk45 chooses its own steps, got 20"),
        ({"guidance": 2.0}, "needs a model with a condition to leave out"),
        ({"features": "emojis"}, "unknown feature extractor 'emojis'"),
        ({"workers": 0}, "workers must be a whole number >= 1, got 0"),
        ({"device": "tpu"}, "device 'tpu' cannot be used"),
    ):
        with pytest.raises(ValueError, match=message):
            make(tmp_path / "out", **options)
    assert make(tmp_path / "out").samples == 22  # nothing of these is in the way
    with pytest.raises(ValueError, match="model must be given"):
        distributed.sample(None, tmp_path / "nothing", resume=True)


def test_what_a_worker_process_refuses_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a model with a condition to leave out"):
        make(tmp_path / "out", guidance=2.0, workers=1)


def test_a_store_of_another_job_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match="holds a job already; go on with it by --resume"):
        make(tmp_path)
    with pytest.raises(ValueError, match="holds another job: seed 0 there and 5 here, steps 3 there and 4 here"):
        make(tmp_path, resume=True, steps=4, seed=5)


def test_other_versions_are_refused(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.setattr(torch, "__version__", "1.13.1")
    there = re.escape(manifest.read_manifest(api.open_storage(tmp_path))["versions"]["torch"])
    with pytest.raises(ValueError, match=f"has other versions: torch 1.13.1 here and {there} there"):
        make(tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"worker 0 \(.*\) has other versions: torch 1.13.1 here and"):
        make(tmp_path / "new", workers=1)


def test_other_weights_are_refused(tmp_path):
    subject = small_job.subject()
    distributed.sample(subject, tmp_path, **small_job.JOB)
    subject.model.weight[0, 0] += 1
    next((tmp_path / "samples").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"of worker 0 .* has other weights than the job"):
        distributed.sample(subject, tmp_path, **small_job.JOB, resume=True)


def test_something_else_in_the_store_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="is not the manifest of a job"):
        make(tmp_path, resume=True)
