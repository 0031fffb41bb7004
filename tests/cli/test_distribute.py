"""`fastdiff distribute`: what it prints, what it ends with, and going on."""

import json
from pathlib import Path

import pytest

from fastdiff.cli.main import main

SMALL = Path(__file__).parents[1] / "distributed" / "small_job.py"
JOB = [
    "--model",
    f"{SMALL}:subject",
    "--count",
    "22",
    "--batch",
    "4",
    "--shard",
    "4",
    "--solver",
    "ddim",
    "--steps",
    "3",
]


def run(*arguments, status=0):
    with pytest.raises(SystemExit) as ended:
        main(["distribute", "sample", *map(str, arguments)])
    assert ended.value.code == status


def test_samples_a_second_run_and_going_on(tmp_path, capsys):
    run(*JOB, "--out", tmp_path / "a", "--features", "pixels", "--json")
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["samples"] == 22
    assert told["failed"] == []
    assert told["statistics"]["samples"] == 22
    assert sum(each["units"] for each in told["workers"].values()) == 6
    assert "22 samples in" in captured.err
    assert told["sha256"] in captured.err
    run(*JOB, "--out", tmp_path / "a", status=2)
    assert "holds a job already; go on with it by --resume, or give another --out" in capsys.readouterr().err
    (tmp_path / "a" / "samples" / "000000004-000000007.npz").unlink()
    run("--resume", "--out", tmp_path / "a", "--json")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["sha256"] == told["sha256"]
    assert "100%" in captured.err


def test_what_could_not_be_made_is_said_and_ends_with_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BREAK", "error")
    monkeypatch.setenv("BREAK_AT", "9")
    run(*JOB, "--out", tmp_path, "--json", status=2)
    captured = capsys.readouterr()
    assert [(each["first"], each["last"]) for each in json.loads(captured.out)["failed"]] == [(8, 11)]
    assert "samples 8 to 11 could not be made: SamplingError" in captured.err
    assert "All others are there; --resume tries again" in captured.err
    assert "2 tried again, 1 failed" in captured.err


def test_workers_are_listed(tmp_path, capsys):
    run(*JOB, "--out", tmp_path, "--workers", "1", "--format", "webdataset")
    said = capsys.readouterr().err
    assert "worker  shards  seconds a shard" in said
    assert len(list((tmp_path / "samples").glob("*.tar"))) == 6


def test_prompts_come_from_an_option_or_a_file(tmp_path, capsys):
    few = ["--count", "2", "--batch", "2", "--shard", "2", "--steps", "1", "--json"]
    (tmp_path / "words").write_text("red heart\n\n  a cat \n", encoding="utf-8")
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    for number, (options, prompts) in enumerate(
        (
            (["--model", "emoji-ldm-64", "--prompts", tmp_path / "words"], ["red heart", "a cat"]),
            (["--model", "emoji-ldm-64", "--prompt", "a cat"], ["a cat"]),
            (["--model", "emoji-dit-64", "--class", "food"], ["food"]),
        )
    ):
        run(*options, *few, "--out", tmp_path / str(number))
        manifest = json.loads((tmp_path / str(number) / "manifest.json").read_text())
        assert manifest["job"]["prompts"] == prompts
    for options, message in (
        (["--prompt", "a cat", "--prompts", tmp_path / "words"], "give one of --prompt, --class and --prompts"),
        (["--prompts", tmp_path / "empty"], "holds no prompts; it needs one a line"),
        (["--prompts", tmp_path / "nothing"], "nothing"),
        (["--class", "fod"], "unknown class 'fod'; did you mean"),
    ):
        capsys.readouterr()
        run("--model", "emoji-dit-64", *few, *options, "--out", tmp_path / "none", status=2)
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "6"], "shard must be a multiple of batch (4), got 6"),
        (["--format", "jpeg"], "unknown format 'jpeg'"),
        (["--format", "none"], "without features there are no statistics"),
        (["--guidance", "2"], "needs a model with a condition to leave out"),
        (["--workers", "0"], "invalid value for '--workers'"),
        (["--out", str(SMALL)], f"cannot write to the folder {SMALL}: {SMALL} is a file"),
        (["--out", "nowhere://x"], "cannot open nowhere://x"),
    ],
)
def test_bad_input_ends_with_one_line(options, message, capsys):
    given = dict(zip(JOB[::2], JOB[1::2])) | {options[0]: options[1]}
    run(*[part for pair in given.items() for part in pair], status=2)
    said = capsys.readouterr().err
    assert message.lower() in said.lower()
    assert len(said.splitlines()) == 1


def test_there_is_nothing_to_go_on_with(tmp_path, capsys):
    run("--resume", "--out", tmp_path, status=2)
    assert f"model must be given: {tmp_path} holds no job to go on with" in capsys.readouterr().err


def test_the_model_s_folder_need_not_be_the_current_one(tmp_path, monkeypatch, capsys):
    """A relative path of a model means the same when the job goes on elsewhere."""
    monkeypatch.chdir(SMALL.parent)
    run("--model", "small_job.py:subject", *JOB[2:], "--out", tmp_path)
    (tmp_path / "samples" / "000000004-000000007.npz").unlink()
    monkeypatch.chdir(tmp_path)
    run("--resume", "--out", tmp_path)
    assert (tmp_path / "samples" / "000000004-000000007.npz").is_file()
