"""`fastdiff profile` as a user runs it."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

import fastdiff

COMMAND = [sys.executable, "-c", "from fastdiff.cli.main import main; main()", "profile"]


def profile(*arguments, **options):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


def test_profile_prints_the_line_that_uses_the_pick(tmp_path):
    result = profile("--solvers", "ddim,dpmpp-2m", "--steps", "2,4", "--samples", 6, "--reference-steps", 8, "--guidance",
                     1, "--target-rmse", 1.5, "--out", tmp_path / "report", "--json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["samples"] == 6
    assert "6 samples" in result.stderr
    assert "FID" not in result.stderr.replace("not FID", "")
    assert facts["line"] in result.stderr
    assert facts["picked"]["rmse"]["value"] <= 1.5
    space = {"fastdiff": fastdiff, "torch": torch}
    exec(facts["line"], space)
    assert space["x"].shape == (9, 3, 32, 32)
    assert (tmp_path / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solvers", "dimm"], "unknown solver 'dimm'; did you mean 'ddim'"),
        (["--steps", "5,x"], "--steps '5,x': "),
        (["--out", "{}/file/report"], "cannot write to the folder"),
        (["--features", "vgg"], "unknown feature extractor 'vgg'"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, message, tmp_path):
    (tmp_path / "file").write_text("")
    result = profile(*[word.format(tmp_path) for word in arguments], cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_budget_that_nothing_meets(tmp_path):
    result = profile("--solvers", "ddim", "--steps", 2, "--samples", 3, "--reference-steps", 8, "--guidance", 1,
                     "--budget", "1ms", "--out", tmp_path)  # fmt: skip
    assert result.returncode == 2
    assert "no setting takes at most 0.001 s a sample; the fastest, ddim, 2 steps, takes" in result.stderr.replace(
        "\n", " "
    )
    assert (tmp_path / "index.html").is_file()


def test_interrupting_keeps_what_is_done(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "--solvers", "ddim", "--steps", "1,2", "--samples", "3000", "--reference-steps", "8", "--guidance", "1",
         "--out", str(tmp_path)],
        stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )  # fmt: skip
    for _ in range(600):
        time.sleep(0.1)
        if len(list(tmp_path.glob("work/*round*.npz"))) > 2:
            break
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130, stderr
    assert "--resume goes on" in stderr
    facts = json.loads((tmp_path / "results.json").read_text())
    assert not facts["facts"]["complete"]
    assert sum(row["rounds"] for row in facts["rows"]) > 2
