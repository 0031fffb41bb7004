"""Every command ends with one line and status 2 for what cannot be, names the file, and shows a traceback if asked."""

import os
import re
import resource
import subprocess
from pathlib import Path

import pytest
import torch
import typer
from commands import COMMAND
from PIL import Image

from fastdiff.cli import main as command_line
from fastdiff.cli.failures import MAY_REPEAT, one_line
from fastdiff.cli.main import app, main

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

BOTH = ["--image", "a.png", "--mask", "m.png"]
RED = ["--source", "red heart"]
BAD = [
    (["nothing"], "no such command 'nothing'; see fastdiff --help"),
    (["sample", "--steps", "many"], "invalid value for '--steps'"),
    (["sample", "--stepps", "3"], "no such option: --stepps"),
    (["sample", "--steps"], "option '--steps' requires an argument"),
    (["sample", "--count", "0"], "invalid value for '--count'"),
    (["sample", "--seed", "1" + 30 * "0"], "invalid value for '--seed'"),
    (["sample", "--steps", "0"], "invalid value for '--steps'"),
    (["sample", "--steps", "10000000"], "10000000"),  # what was given is in the line, in every version of typer
    (["sample", "--count", "1" + 12 * "0"], "invalid value for '--count'"),
    (["sample", "--zoom", "100000"], "invalid value for '--zoom'"),
    (["sample", "--device", ""], "--device needs a value, got ''"),
    (["sample", "--model="], "--model needs a value, got ''"),
    (["sample", "--class", "heart", "--class", "face"], "--class was given twice, and takes one value"),
    (["sample", "--seed=1", "--seed", "2"], "--seed was given twice, and takes one value"),
    (["sample", "--solver", "rk45", "--steps", "3"], "--steps: rk45 chooses its own steps"),
    (["sample", "--model", "damaged"], "diffusers cannot load damaged: "),
    (["sample", "--model", "own.py:shape"], "shape must be that of one sample, e.g. (3, 32, 32), got 8"),
    (["sample", "--model", "own.py:latent"], "a model of anything else needs `decode`"),
    (["sample", "--guidance", "inf"], "guidance scale must be a finite number"),
    (["sample", "--out", "folder.png"], "--out names a folder"),
    (["sample", "--out", "text.txt/x.png"], "cannot write to the folder text.txt: text.txt is a file"),
    (["sample", "--image", "nowhere.png"], "nowhere.png: no such file"),
    (["sample", "--image", "text.txt"], "cannot read the picture text.txt"),
    (["sample", "--image", "folder.png"], "folder.png: is a directory"),
    (["sample", "--strength", "0.5"], "--strength needs --image"),
    (["sample", "--image", "text.txt", "--strength", "0"], "--strength must be in (0, 1], got 0"),
    (["sample", "--image", "text.txt", "--strength", "nan"], "--strength must be in (0, 1], got nan"),
    (["sample", "--prompts", "nowhere.txt"], "nowhere.txt: no such file"),
    (["sample", "--prompts", "text.txt"], "text.txt, line 1: unknown class 'text'"),
    (["sample", "--prompts", "text.txt", "--class", "food"], "give --prompts or one of --prompt and --class"),
    (["sample", "--prompts", "empty.txt"], "empty.txt holds no prompts"),
    (["edit", "nothing"], "no such command 'nothing'"),
    (["edit", "inpaint", "--image", "a.png"], "missing option '--mask'"),
    (["edit", "inpaint", *BOTH, "--out", "a.png"], "a.png is there already; --overwrite replaces it"),
    (["edit", "inpaint", *BOTH, "--strip", "a.png"], "a.png is there already; --overwrite replaces it"),
    (["edit", "inpaint", *BOTH, "--out", "b.png", "--strip", "b.png"], "--out and --strip are the same file, b.png"),
    (["edit", "inpaint", *BOTH, "--out", "b.jpg"], "--out must end in .png, got 'b.jpg'"),
    (["edit", "inpaint", *BOTH, "--out", "folder.png"], "folder.png is a folder, expected a file"),
    (["edit", "inpaint", *BOTH, "--out", "text.txt/x.png"], "cannot write to the folder text.txt: text.txt is a file"),
    (["edit", "inpaint", *BOTH, "--prompt", "red heart"], "emoji-unet-32 takes no prompts, give --class: "),
    (["edit", "inpaint", *BOTH, "--class", "smilies"], "did you mean 'smileys'"),
    (["edit", "inpaint", *BOTH, "--method", "magic"], "unknown --method 'magic'"),
    (["edit", "inpaint", *BOTH, "--jumps", "5"], "--jumps must be like 5:2"),
    (
        ["edit", "inpaint", *BOTH, "--jumps", "5:2", "--method", "palette"],
        "--jumps is for --method repaint, not palette",
    ),
    (["edit", "inpaint", *BOTH, "--hole", "red"], "unknown --hole 'red'"),
    (["edit", "inpaint", *BOTH, "--solver", "rk45"], "repaint needs a solver with fixed steps"),
    (["edit", "inpaint", *BOTH, "--guidance", "3"], "--guidance 3 needs a condition to guide to: --class or --prompt"),
    (["edit", "inpaint", *BOTH, "--model", "nothing"], "unknown model 'nothing'"),
    (["edit", "inpaint", "--image", "a.png", "--mask", "wide.png"], "wide.png has 8 x 6 pixels and a.png 6 x 6"),
    (["edit", "inpaint", "--image", "a.png", "--mask", "a.png"], "a.png has no hole: nothing is black"),
    (
        ["edit", "inpaint", "--image", "wide.png", "--mask", "aside.png"],
        "nothing in the 6 x 6 pixels that are taken is",
    ),
    (["edit", "inpaint", "--image", "a.png", "--mask", "text.txt"], "cannot read the picture text.txt"),
    (["edit", "inpaint", "--image", "nowhere.png", "--mask", "m.png"], "nowhere.png: no such file"),
    (["edit", "inpaint", "--image", "text.txt", "--mask", "m.png"], "cannot read the picture text.txt"),
    (["edit", "variation", "--image", "a.png", "--strength", "2"], "--strength must be in (0, 1], got 2"),
    (["edit", "variation", "--image", "a.png", "--model", "own.py:shape"], "shape must be that of one sample"),
    (["edit", "restore", "--image", "a.png", "--task", "sharpen"], "unknown --task 'sharpen'"),
    (["edit", "restore", "--image", "a.png", "--task", "superres", "--factor", "5"], "divide 32 and 32"),
    (["edit", "restore", "--image", "a.png", "--task", "superres", "--blur", "1"], "--blur is for --task deblur"),
    (["edit", "restore", "--image", "a.png", "--task", "deblur", "--blur", "90"], "--blur must be 0.2 to 10.3 pixels"),
    (["edit", "restore", "--image", "a.png", "--task", "deblur", "--blur", "nan"], "--blur must be 0.2 to"),
    (["edit", "restore", "--image", "a.png", "--task", "inpaint"], "--task inpaint needs --mask"),
    (["edit", "restore", "--image", "a.png", "--task", "deblur", "--scale", "nan"], "--scale must be positive"),
    (["edit", "prompt", "--prompt", "blue heart"], "missing option '--source'"),
    (["edit", "prompt", *RED], "--prompt is needed"),
    (["edit", "prompt", *RED, "--prompt", "red heart"], "so that nothing would change"),
    (["edit", "prompt", *RED, "--prompt", "red haert"], "unknown word 'haert'; did you mean 'heart'"),
    (["edit", "prompt", *RED, "--prompt", "heart", "--mode", "replace"], "cannot be aligned word by word"),
    (["edit", "prompt", *RED, "--prompt", "blue heart", "--mode", "swap"], "unknown --mode 'swap'"),
    (["edit", "prompt", *RED, "--weight", "red"], "--weight must be like red=2, got 'red'"),
    (["edit", "prompt", *RED, "--weight", "green=2"], "unknown word 'green'"),
    (["edit", "prompt", *RED, "--prompt", "blue heart", "--cross", "2"], "--cross is a share of the steps"),
    (["edit", "prompt", *RED, "--prompt", "blue heart", "--blend", "apple"], "unknown word 'apple'"),
    (["edit", "prompt", *RED, "--prompt", "blue heart", "--solver", "rk45"], "a solver that takes the grid's steps"),
    (["edit", "prompt", "--source", "food", "--prompt", "x", "--model", "emoji-unet-32"], "takes no prompts"),
    (["edit", "diffedit", "--image", "a.png"], "--prompt is needed: what the picture shall become"),
    (["edit", "diffedit", "--image", "a.png", "--prompt", "heart", "--threshold", "2"], "must lie between 0 and 1"),
    (["edit", "diffedit", "--image", "a.png", "--prompt", "heart", "--strength", "0.001"], "leaves none of 25 steps"),
    (["demo", "--guidance", "nan"], "guidance scale must be a finite number"),
    (["demo", "--per-class", "x"], "invalid value for '--per-class'"),
    (["demo", "--per-class", "1" + 11 * "0"], "invalid value for '--per-class'"),
    (["demo", "--baseline-steps", "1" + 11 * "0"], "invalid value for '--baseline-steps'"),
    (["demo", "--model", "nothing"], "unknown model 'nothing'"),
    (
        ["demo", "--model", "emoji-dit-64-progressive"],
        "was distilled to 4 steps of ddim, and the demo compares solvers and steps: try `fastdiff sample --model",
    ),
    (["demo", "--out", ""], "--out needs a value, got ''"),
    (["demo", "--out", "text.txt"], "cannot write to the folder text.txt"),
    (["profile", "--model", "folder.png"], "folder.png is a folder without model_index.json"),
    (["profile", "--model", "nothing:make"], "no module named 'nothing'"),
    (["profile", "--model", ":make"], "must be like module:function or file.py:function"),
    (["profile", "--model", ".x:make"], "must be like module:function or file.py:function"),
    (["profile", "--model", "own.py:"], "must be like module:function or file.py:function"),
    (
        ["profile", "--model", "own.py:network"],
        "must return a profiling.subject or a dict of its fields, got a identity",
    ),
    (["profile", "--model", "own.py:fails"], "division by zero, in own.py, line 6 (fastdiff_debug=1 shows where)"),
    (["profile", "--model", "own.py:number"], "must be a function that returns a fastdiff.profiling.subject"),
    (["profile", "--model", "own.py:missing"], "unexpected keyword argument 'shapes'"),
    (["profile", "--model", "broken.py:make"], "syntaxerror"),
    (["profile", "--cache", "nothing"], "caching must be like"),
    (["profile", "--find", "--target-ssim", "2"], "target_ssim must be in (0, 1), got 2"),
    (["profile", "--find", "--target-ssim", "0.9", "--target-rmse", "0.1"], "one target at most"),
    (["profile", "--find", "--solvers", "dimm"], "unknown solver 'dimm'; did you mean 'ddim'"),
    (["profile", "--find", "--start", "heum"], "unknown solver 'heum'; did you mean 'heun'"),
    (["profile", "--find", "--minutes", "0"], "minutes must be positive"),
    (["profile", "--find", "--budget", "2s"], "--budget is for a sweep, without --find"),
    (["profile", "--find", "--guidance", "1,2"], "--guidance must be one scale with --find, got 2"),
    (["profile", "--find", "--resume", "--out", "nowhere"], "nowhere holds no sweep to go on with"),
    (["profile", "--find", "--model", "emoji-dit-64-progressive"], "is distilled for a solver and steps of its own"),
    (["profile", "--target-ssim", "0.9"], "--target-ssim is for a search, with --find"),
    (["profile", "--guidance-every", "0"], "guidance_every must be a whole number >= 1, got 0"),
    (["profile", "--cache", "deep:t=x"], "caching must be like"),
    (["profile", "--interval", "3"], "--interval '3': an interval must be like -2:1"),
    (["profile", "--threshold", "x"], "--threshold 'x'"),
    (["profile", "--solvers", ","], "--solvers needs at least one value"),
    (["profile", "--batch", "0"], "batch must be a whole number >= 1"),
    (["profile", "--batch", "1e3"], "--batch '1e3': '1e3' is not a whole number"),
    (["profile", "--guidance", "1,x"], "--guidance '1,x': 'x' is not a number"),
    (["profile", "--interval", "a:1"], "'a' is not the low end of an interval like -2:1"),
    (["profile", "--interval", "3:1"], "guidance interval must be (low, high) in lambda"),
    (["profile", "--guidance", "1", "--interval", "nan:1"], "guidance interval must be (low, high) in lambda"),
    (["profile", "--threshold", "1@"], "'' is not a percentile as in 1@0.995"),
    (["profile", "--minutes", "inf"], "minutes must be positive and finite, got inf"),
    (["profile", "--seed", "1" + 30 * "0"], "invalid value for '--seed'"),
    (["profile", "--model", ""], "--model needs a value, got ''"),
    (["profile", "--model", "damaged"], "diffusers cannot load damaged: "),
    (["profile", "--model", "own.py:latent"], "a model of anything else needs `decode`"),
    (["profile", "--features", "own.py:number"], "feature extractor 'own.py:number' must be a function, got a int"),
    (["profile", "--features", "own.py:fails"], "feature extractor 'own.py:fails' failed with a picture: typeerror"),
    (["profile", "--minutes", "0"], "minutes must be positive"),
    (["profile", "--data", "folder.png"], "folder.png holds 0 pictures"),
    (["profile", "--resume", "--out", "nowhere"], "nowhere holds no sweep to go on with"),
    (["info", "--jsonn"], "no such option: --jsonn"),
    (["solvers", "nothing"], "unknown solver 'nothing'"),
    (["kernels", "--target", "sm_1"], "unknown target 'sm_1'"),
    (["verify", "nothing"], "unknown model 'nothing'"),
    (["verify", "--batch", "100000000"], "invalid value for '--batch'"),
    (["solvers", ""], "an argument is missing, got ''"),
    (["verify", "--seed", "1" + 30 * "0"], "invalid value for '--seed'"),
    pytest.param(["train", "emoji-unet-32", "--device", "cuda"], "--device 'cuda' cannot be used here", marks=NO_CUDA),
    (["train", "emoji-unet-32", "--device", "gpu"], "--device 'gpu' cannot be used here"),
    (["train", "emoji-unet-32", "--device", "meta"], "--device 'meta' holds no numbers"),
    (["train", "emoji-unet-32", "--font", "text.txt"], "text.txt is no font"),
    (["train", "emoji-unet-32", "--font", "nowhere.ttf"], "not found in nowhere.ttf"),
    (["train", "emoji-unet-32", "--steps", "0"], "invalid value for '--steps'"),
    (["train", "emoji-unet-32", "--out", "text.txt"], "cannot write to the folder text.txt"),
    (["train", "emoji-unet-32", "--export", "--out", "nowhere"], "nothing to export in nowhere: it holds no run"),
    (["train"], "missing argument 'recipe'"),
    (["bench", "nothing"], "unknown suite 'nothing'"),
    (["bench", "ops", "--only", "nothing"], "unknown op 'nothing'"),
    (["bench", "ops", "--only", ","], "--only needs at least one value, got ','"),
    (["bench", "models", "--against", ","], "--against needs at least one value, got ','"),
    (["bench", "scaling", "--only", ""], "--only needs a value, got ''"),
    (["bench", "ops", "--json", "folder.png"], "folder.png is a folder, expected a file"),
    (["bench", "models", "--only", "nothing"], "unknown model 'nothing'"),
    (["bench", "solvers", "--only", "nothing"], "unknown solver 'nothing'"),
    (["bench", "convergence", "--only", "nothing"], "unknown solver 'nothing'"),
    (["bench", "convergence", "--only", "ddim", "--json", "folder.png"], "folder.png is a folder, expected a file"),
    (["bench", "scaling", "--only", "nothing"], "unknown axis 'nothing'"),
    (["bench", "compare", "folder.png", "folder.png"], "folder.png: is a directory"),
    (["bench", "compare", "text.txt", "text.txt"], "text.txt is not json"),
    (["bench", "compare", "nowhere.json", "nowhere.json"], "nowhere.json: no such file"),
]
OWN = """
import torch
from fastdiff.profiling import Subject; from fastdiff.schedules import VPDiscrete
number = 3
def network(): return torch.nn.Identity()
def fails(): return 1 / 0
def shape(): return Subject("x", torch.nn.Identity(), 8, VPDiscrete.linear(), "eps")
def latent(): return Subject("x", torch.nn.Identity(), (4, 8, 8), VPDiscrete.linear(), "eps")
def missing(): return Subject("x", torch.nn.Identity(), shapes=(3, 8, 8))
"""


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_one_line(arguments, message, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # nobody else, or a command says so
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model_index.json").write_text("[]")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def make(:")
    for name, size, hole in (
        ("a.png", (6, 6), None), ("m.png", (6, 6), (2, 2)), ("wide.png", (8, 6), None), ("aside.png", (8, 6), (0, 0))
    ):  # fmt: skip
        picture = Image.new("RGB", size, "white")
        if hole is not None:
            picture.putpixel(hole, (0, 0, 0))
        picture.save(name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("fastdiff: ")
    assert err.count("\n") == 1
    assert message in err.lower()
    if arguments[0] in ("demo", "edit", "profile", "sample", "bench", "train"):
        after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
        assert after == before


def test_the_traceback_is_there_for_who_asks(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    arguments = ["profile", "--model", "own.py:fails"]
    for command, environment in (
        ([*COMMAND, "--debug", *arguments], {}), ([*COMMAND, *arguments], {"FASTDIFF_DEBUG": "1"}),
    ):  # fmt: skip
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | environment
        )
        assert result.returncode == 1
        assert "Traceback" in result.stderr
        assert "def fails(): return 1 / 0" in result.stderr


def test_no_command_is_answered_with_help(capsys):
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 2
    text = "".join(capsys.readouterr())
    assert "Usage" in text
    assert "profile" in text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (AssertionError("one\ntwo"), "AssertionError: one two (FASTDIFF_DEBUG=1 shows where)"),
        (KeyError("x"), "KeyError: 'x' (FASTDIFF_DEBUG=1 shows where)"),
        (RuntimeError("of torch"), "RuntimeError: of torch (FASTDIFF_DEBUG=1 shows where)"),
        (ValueError("said\n  well"), "said well"),
        (OSError(28, "No space left on device", "x.png"), "x.png: No space left on device"),
        (OSError(28, "cannot write x.png: No space left on device"), "cannot write x.png: No space left on device"),
        (OSError("alone"), "alone"),
    ],
)
def test_what_is_said_of_an_error(error, text):
    assert one_line(error) == text


def test_every_error_ends_with_one_line(monkeypatch, capsys):
    def broken(*_, **__):
        return sum(["not foreseen"])

    monkeypatch.setattr(command_line, "app", broken)
    with pytest.raises(SystemExit) as left:
        main(["info"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("fastdiff: TypeError: unsupported operand")
    assert re.search(r", in test_bad_inputs\.py, line \d+ \(FASTDIFF_DEBUG=1 shows where\)\n$", error)


def small_files():
    """As on a full disk: nothing longer than 20 kB can be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["sample", "--count", "16", "--steps", "1", "--zoom", "9", "--out", "grid.png"], "grid.png"),
        (["bench", "convergence", "--only", "ddim", "--html", "page.html"], "page.html"),
        (["edit", "prompt", *RED, "--weight", "red=2", "--steps", "1", "--zoom", "9"], "edited-strip.png"),
    ],
)
def test_a_full_disk_names_the_file(arguments, file, tmp_path):
    result = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, preexec_fn=small_files,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"fastdiff: cannot write {file}: ")
    assert "Traceback" not in result.stderr
    assert not list(Path(tmp_path).iterdir())  # no part of it either


def test_options_that_may_be_there_twice_are_known():
    """Those that take several values, of all commands."""

    def options(command):
        yield from (p for p in command.params if p.param_type_name == "option")
        for below in getattr(command, "commands", {}).values():
            yield from options(below)

    found = {name for p in options(typer.main.get_command(app)) if p.multiple for name in p.opts}
    assert found == set(MAY_REPEAT)
