"""The commands as a user runs them: output, files, errors before work, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from browser import NEEDS_BROWSER, browse
from commands import COMMAND, run_command
from PIL import Image

import fastdiff
from fastdiff import pictures
from fastdiff.cli import demo
from fastdiff.cli.main import main
from fastdiff.models import bundled

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def pixels(path):
    return np.asarray(Image.open(path))


def test_help_names_every_command():
    text = run_command("--help").stdout
    assert all(name in text for name in ("demo", "edit", "sample", "info", "solvers", "kernels", "bench", "train"))


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code in (None, 0)
    assert capsys.readouterr().out == f"fastdiff {fastdiff.__version__}\n"


def test_verify(capsys):
    with pytest.raises(SystemExit) as left:
        main(["verify", "emoji-unet-32", "--batch", "1", "--json"])
    assert left.value.code in (None, 0)
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is True
    assert found["against"] == "float64"
    assert found["nodes"] > 50
    assert found["first"] is None
    assert found["outputs"][0]["maximum"] <= found["outputs"][0]["bound"]
    failed = run_command("verify", "no-such-model")
    assert failed.returncode != 0
    assert "no-such-model" in failed.stderr


def test_info():
    facts = json.loads(run_command("info", "--json").stdout)
    assert facts["fastdiff"] == fastdiff.__version__
    assert facts["torch"] == torch.__version__
    assert facts["instruction_set"] == facts["instruction_sets_available"][0]
    assert "C++" in facts["kernels"]["linear_combine"]
    forced = os.environ | {"FASTDIFF_ISA": "baseline", "FASTDIFF_BACKEND": "reference"}
    facts = json.loads(run_command("info", "--json", env=forced).stdout)
    assert facts["instruction_set"] == "baseline (FASTDIFF_ISA)"
    assert "reference" in facts["kernels"]["linear_combine"]
    assert "emoji-unet-32" in run_command("info").stdout


@NO_GPU
def test_info_says_why_there_are_no_gpu_kernels():
    kernels = json.loads(run_command("info", "--json").stdout)["kernels"]
    for name in ("cuda", "triton"):
        assert "not available: " in kernels[name]
    assert "cuda: PyTorch (kernels: no CUDA kernels (" in kernels["sampling loop"]
    assert "cuda: nothing (triton: " in kernels["attention"]


def test_info_for_people_is_short():
    """Every reason once, and no line without a fact."""
    for environment in ({}, {"FASTDIFF_BACKEND": "reference"}, {"FASTDIFF_ISA": "baseline"}):
        result = run_command("info", env=os.environ | {"COLUMNS": "80"} | environment)
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert len(lines) <= 30
        assert max(map(len, lines)) <= 80
        text = " ".join(result.stdout.split())
        for reason in ("torch sees no GPU", "needs AMX", "was chosen", "is not installed", "insufficient", "build"):
            assert text.count(reason) <= 1, reason
        for op in fastdiff.ops.OPS:
            assert op in text


def test_solvers():
    rows = json.loads(run_command("solvers", "--json").stdout)["solvers"]
    assert {row["name"] for row in rows} == set(fastdiff.solvers.SOLVERS)
    heun = next(row for row in rows if row["name"] == "heun")
    assert (heun["order"], heun["calls_a_step"], heun["stochastic"]) == (2, 2, False)
    text = run_command("solvers", env=os.environ | {"COLUMNS": "300"}).stdout
    assert all(row["name"] in text and row["source"] in text for row in rows)
    usual = run_command("solvers", env=os.environ | {"COLUMNS": "80"}).stdout
    assert all(row["name"] in usual and row["source"].split(" ")[0] in usual for row in rows)
    assert max(map(len, usual.splitlines())) <= 80
    assert len(usual.splitlines()) < 1.3 * len(rows) + 8  # nearly all on one line
    assert "Which to take: dpmpp-2m or unipc-3" in usual
    narrow = run_command("solvers", env=os.environ | {"COLUMNS": "60"}).stdout
    assert all(row["name"] in narrow for row in rows)


def test_one_solver_in_full():
    text = run_command("solvers", "ddim").stdout
    assert "eta = 0 is deterministic" in text
    assert "  eta=0.0" in text
    wrong = run_command("solvers", "dimm")
    assert wrong.returncode == 2
    assert "did you mean 'ddim'" in wrong.stderr


@pytest.mark.parametrize(("variable", "value"), [("FASTDIFF_ISA", "avx1024"), ("FASTDIFF_BACKEND", "gpu")])
def test_bad_environment(variable, value):
    result = run_command("info", env=os.environ | {variable: value})
    assert result.returncode == 2
    assert value in result.stderr
    assert "Traceback" not in result.stderr


def test_sample(tmp_path):
    out = tmp_path / "new" / "grid.png"
    result = run_command("sample", "--class", "animals", "--steps", 3, "--count", 5, "--seed", 7, "--batch", 2,
                              "--out", out, "--zoom", 1, "--json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["class"], facts["steps"], facts["seed"], facts["count"]) == ("animals", 3, 7, 5)
    model = fastdiff.load("emoji-unet-32")
    conditions = dict(cond=model.info.condition("animals", 5), uncond=model.info.condition(None, 5))
    expected = fastdiff.sample(model, (5, 3, 32, 32), steps=3, seed=7, guidance=2.0, **conditions)
    sheet = pictures.grid(expected, 4)
    # Batches of two and of five round differently inside the network, by less than one grey level.
    assert np.abs(pixels(out).astype(int) - sheet).max() <= 1


def test_sample_from_a_picture(tmp_path):
    """SDEdit: as `fastdiff.diffuse` and `start=` do it, the closer the smaller the strength."""
    model = fastdiff.load("emoji-unet-32")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 40, 3), dtype=np.uint8)).save("picture.png")
    x0 = pictures.load_square("picture.png", 32)[None]
    assert x0.shape == (1, 3, 32, 32)
    distances = []
    for strength in (0.1, 0.5, 1.0):
        arguments = ["--image", "picture.png", "--strength", strength, "--class", "food", "--count", 2, "--steps", 10]
        result = run_command("sample", *arguments, "--seed", 3, "--zoom", 1, "--batch", 1, "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["strength"] == strength
        start = strength * model.info.schedule.t_max
        noisy = fastdiff.diffuse(x0.expand(2, -1, -1, -1), model.info.schedule, start, seed=3)
        expected = fastdiff.sample(
            model, noisy, start=start, steps=10, solver="dpmpp-2m", guidance=2.0, cond=model.info.condition("food", 2),
            uncond=model.info.condition(None, 2), seed=3,
        )  # fmt: skip
        assert np.abs(pixels("grid.png").astype(int) - pictures.grid(expected, 2)).max() <= 2
        distances.append(float((expected - x0).square().mean()))
    assert distances == sorted(distances)
    plain = run_command("sample", "--image", "picture.png", "--count", 1, "--steps", 2)  # without guidance
    assert (plain.returncode, "Warning" in plain.stderr) == (0, False)


def test_sample_a_list_of_conditions(tmp_path):
    Path("classes.txt").write_text("food\n\n  animals \n")
    result = run_command("sample", "--prompts", "classes.txt", "--count", 3, "--steps", 3, "--zoom", 1, "--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["prompts"], facts["count"]) == (["food", "animals"], 6)
    model = fastdiff.load("emoji-unet-32")
    conditions = dict(
        cond=model.info.condition(["food"] * 3 + ["animals"] * 3, 6), uncond=model.info.condition(None, 6)
    )
    expected = fastdiff.sample(model, (6, 3, 32, 32), steps=3, seed=0, guidance=2.0, **conditions)
    assert np.abs(pixels("grid.png").astype(int) - pictures.grid(expected, 3)).max() <= 1  # a row for each line


def test_sample_from_a_model_of_ones_own(tmp_path):
    """As the model's Subject says: schedule, conditions, guidance."""
    arguments = ["--model", f"{toy.__file__}:subject", "--count", 5, "--batch", 2, "--steps", 6, "--zoom", 1]
    folder = os.environ | {"PYTHONPATH": str(Path(toy.__file__).parent)}
    result = run_command("sample", *arguments, "--guidance", 1.5, "--seed", 4, "--json", env=folder)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["guidance"] == 1.5
    subject = toy.subject()
    cond, uncond = subject.conditions_of(0, 5)
    expected = fastdiff.sample(
        subject.model, (5, *subject.shape), schedule=subject.schedule, prediction="eps", solver="dpmpp-2m", steps=6,
        guidance=1.5, cond=cond, uncond=uncond, seed=4,
    )  # fmt: skip
    assert np.abs(pixels("grid.png").astype(int) - pictures.grid(expected, 4)).max() <= 1
    refused = run_command("sample", *arguments, "--class", "food", env=folder)
    assert (refused.returncode, refused.stderr) == (
        2,
        "fastdiff: --class is for bundled models and those that fastdiff train wrote\n",
    )


def test_sample_from_a_diffusers_folder(tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers", reason="belongs to the diffusers extra")
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    result = run_command("sample", "--model", "pipe", "--count", 2, "--steps", 3, "--zoom", 1)
    assert result.returncode == 0, result.stderr
    assert pixels("grid.png").shape == (12, 22, 3)
    for option, message in (
        (["--guidance", "3"], "--guidance 3 needs a model with a condition to leave out"),
        (["--prompt", "a photo"], "pipe takes no prompts"),
    ):
        with pytest.raises(SystemExit) as left:  # here, where diffusers is imported
            main(["sample", "--model", "pipe", *option])
        assert left.value.code == 2
        assert message in capsys.readouterr().err
    # from a picture: with hardly any noise it stays
    Image.new("RGB", (8, 8), (200, 100, 0)).save("plain.png")
    result = run_command("sample", "--model", "pipe", "--image", "plain.png", "--strength", 0.01, "--steps", 200,
                              "--solver", "ddim", "--count", 1, "--zoom", 1)  # fmt: skip
    assert result.returncode == 0, result.stderr
    alone = pixels("grid.png")
    assert alone.shape == (8, 8, 3)  # without a margin
    assert np.abs(alone.astype(int) - (200, 100, 0)).max() < 30


def needs(*names):
    return pytest.mark.skipif(
        not set(names) <= set(bundled.names()), reason=f"the weights of {' or '.join(names)} are not in the package yet"
    )


@needs("emoji-ldm-64")
def test_sample_a_prompt(tmp_path):
    out = tmp_path / "apple.png"
    result = run_command("sample", "--model", "emoji-ldm-64", "--prompt", "red apple", "--count", 2, "--steps", 8,
                              "--guidance", 3, "--seed", 1, "--out", out, "--zoom", 1, "--json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["prompt"], facts["class"]) == ("red apple", None)
    sheet = pixels(out)
    assert sheet.shape == (68, 134, 3)
    for left in (2, 68):
        middle = sheet[2:66, left : left + 64][16:48, 16:48].mean((0, 1))
        assert middle[0] > middle[2] + 60  # red


@needs("emoji-ldm-64", "emoji-dit-64")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "emoji-ldm-64", "--prompt", "red aple"], "unknown word 'aple'; did you mean 'maple' or 'apple'"),
        (["--model", "emoji-ldm-64", "--class", "food"], "emoji-ldm-64 has no classes, give --prompt"),
        (["--model", "emoji-dit-64", "--prompt", "red apple"], "emoji-dit-64 takes no prompts, give --class: smileys"),
        (["--prompt", "red apple", "--class", "food"], "give --class or --prompt, not both"),
    ],
)
def test_a_condition_that_the_model_does_not_take(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", *arguments, "--out", str(tmp_path / "grid.png")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--solver", "dpmp"], "unknown solver 'dpmp'; did you mean"),
        (["sample", "--model", "emoji"], "unknown model 'emoji'"),
        (["sample", "--class", "animal"], "did you mean 'animals'"),
        (["sample", "--steps", "0"], "Invalid value for '--steps'"),
        (["sample", "--guidance", "nan"], "guidance scale must be a finite number"),
        (["sample", "--guidance", "3"], "--guidance 3 needs a condition to guide to: --class or --prompt"),
        (["sample", "--model", "./folder"], "--model './folder': there is no such folder; bundled models are"),
        (["sample", "--solver", "none"], ", which `fastdiff solvers` lists"),
        (["sample", "--grid", "even"], "unknown grid 'even'"),
        (["sample", "--out", "grid.jpg"], "--out must end in .png"),
        (["demo", "--model", "emoji"], "unknown model 'emoji'"),
        (["kernels", "--target", "sm_91"], "unknown target 'sm_91'; did you mean 'sm_90'"),
        (["kernels", "--op", "atention"], "unknown op 'atention'; did you mean 'attention'"),
        (["bench", "gpu", "--op", "atention"], "unknown op 'atention'; did you mean 'attention'"),
        pytest.param(["bench", "gpu"], "no GPU kernels to measure: ", marks=NO_GPU),
        (["train", "emoji-unet-23"], "unknown recipe 'emoji-unet-23'; did you mean 'emoji-unet-32'"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, message, tmp_path):
    result = run_command(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "command", [["sample", "--out", "{}/grid.png"], ["demo", "--out", "{}"], ["train", "emoji-unet-32", "--out", "{}"]]
)
def test_a_folder_that_cannot_be_written_is_said_first(command, tmp_path):
    (tmp_path / "file").write_text("")
    result = run_command(*[part.format(tmp_path / "file" / "sub") for part in command])
    assert result.returncode == 2
    assert re.search(r"cannot write to the folder .*file", result.stderr)
    assert result.stderr.count("\n") == 1  # and no progress bar before it


def test_interrupting_a_sample_keeps_the_finished_pictures(tmp_path):
    out = tmp_path / "grid.png"
    process = subprocess.Popen(
        [*COMMAND, "sample", "--count", "400", "--batch", "4", "--steps", "2", "--out", str(out), "--zoom", "1"],
        stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )  # fmt: skip
    lines = iter(process.stderr.readline, "")
    assert any(line.startswith("10%") for line in lines)  # on a busy machine it takes a minute to come to it
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130, stderr
    assert pixels(out).shape[1] > 4 * 34
    assert "Traceback" not in stderr


class Images(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources = []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.sources.append(dict(attributes)["src"])


def test_demo(tmp_path, monkeypatch, capsys):
    """Three bars: the solver alone, the kernels alone, both; and pictures of their own size. --quick has one picture of
    each class and measures distances on fewer."""
    folder = tmp_path / "demo"
    monkeypatch.setattr(demo, "CONVERGED_STEPS", 8)
    with pytest.raises(SystemExit) as left:
        main(["demo", "--out", str(folder), "--quick", "--baseline-steps", "4", "--steps", "2", "--json"])
    assert not left.value.code
    found = capsys.readouterr()
    facts = json.loads(found.out)
    assert facts["difference_at_equal_steps"] <= 1e-5
    assert (facts["pictures"], facts["error_pictures"]) == (9, demo.QUICK_PICTURES)
    paths = {"baseline": ("ddim", 4), "solver": ("dpmpp-2m", 2), "kernels": ("ddim", 4), "fastdiff": ("dpmpp-2m", 2)}
    for name, (solver, steps) in paths.items():
        path = facts[name]
        assert (path["solver"], path["steps"]) == (solver, steps)
        assert path["speed_up"] == pytest.approx(facts["baseline"]["seconds"] / path["seconds"], rel=0.02, abs=0.01)
    assert facts["speed_up"] == facts["fastdiff"]["speed_up"]
    page = Path(facts["report"]).read_text(encoding="utf-8")
    images = Images()
    images.feed(page)
    assert sorted(images.sources) == ["baseline.png", "error.png", "fastdiff.png"]
    for source in images.sources:
        assert pixels(folder / source).std() > 1  # there, readable, and not blank
    assert pixels(folder / "baseline.png").shape[1] == 3 * (32 + 4)
    assert "width: 100%" not in page.split(".pixels")[1].split("}")[0]  # one picture a row is not blown up
    assert f"{facts['difference_at_equal_steps']:.1e}" in page
    assert page.count('class="bar"') + page.count('class="bar both"') == 3
    assert [title in page for title in ("Solver alone", "Kernels alone", "Both")] == [True] * 3
    assert max(int(found) for found in re.findall(r"^(\d+)%", found.err, re.M)) == 100


def test_the_demo_takes_as_many_steps_as_come_as_close():
    def falls(order, scale=1.0):
        seen = []

        def distance(steps):
            seen.append(steps)
            return scale / steps**order

        return distance, seen

    for order, target, expected in (
        (2, 1 / 15**2, 15),
        (2, 1 / 23**2, 23),
        (1, 1 / 31, 31),
        (2, 1e-9, 50),
        (1, 5.0, 1),
    ):
        distance, seen = falls(order)
        assert demo.equal_steps(distance, target, 50) == expected
        assert len(set(seen)) <= 3  # a measurement takes seconds
    assert demo.equal_steps(lambda steps: 1.0, 0.5, 40) == 40
    uneven = {10: 0.4, 20: 0.1}  # closer than it seemed at first
    found = demo.equal_steps(lambda steps: uneven.get(steps, 3.0 / steps), 0.12, 50)
    assert uneven.get(found, 3.0 / found) <= 0.12


def test_interrupting_the_demo_leaves_whole_files_alone(tmp_path, monkeypatch, capsys):
    """Ctrl-C in the run after the baseline: its pictures are there, the page is not, and nothing is said twice."""
    monkeypatch.setattr(demo, "CONVERGED_STEPS", 2)
    monkeypatch.setattr(demo, "CURVE_STEPS", (1,))
    monkeypatch.setattr(demo, "CURVE_PICTURES", 1)

    def sample(self, solver, steps, fast, count=None, callback=None, model=None):
        if steps == 3 and not fast:
            raise KeyboardInterrupt
        return torch.zeros(count or len(self.labels), *self.model.info.shape)

    monkeypatch.setattr(demo.Demo, "sample", sample)
    with pytest.raises(SystemExit) as left:
        main(["demo", "--out", "d", "--per-class", "1", "--baseline-steps", "2", "--steps", "3"])
    assert left.value.code == 130
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["baseline.png"]
    assert "Traceback" not in capsys.readouterr().err


def page_of_the_demo(folder, **changes):
    """Of runs that were not made."""
    run = demo.Run("baseline", "ddim", 4, False, torch.zeros(2, 3, 32, 32), 1.0)
    runs = [run, *(replace(run, title=title, seconds=0.5) for title in ("solver alone", "kernels alone", "both"))]
    facts = {name: each.facts(run) for name, each in zip(("baseline", "solver", "kernels", "fastdiff"), runs)}
    curves = {"ddim": {4: 0.2, 8: 0.1}, "dpmpp-2m": {4: 0.1, 8: 0.02}}
    summary = {
        **facts, "model": "m", "pictures": 2, "guidance": 2.0, "seed": 0, "speed_up": 2.0, "tolerance": 1e-5,
        "difference_at_equal_steps": 1e-7, "largest_difference_at_equal_steps": 1e-6, "agree": True, "errors": curves,
        "error_of_baseline": 0.2, "error_of_fastdiff": 0.1, "error_pictures": 2, "converged_steps": 8,
        **changes,
    }  # fmt: skip
    for name in ("baseline.png", "fastdiff.png"):
        pictures.save_png(folder / name, pictures.grid(torch.rand(2, 3, 32, 32), 1), zoom=3)
    demo.write(folder, runs, SimpleNamespace(classes=[None]), summary)
    return folder / "index.html"


def test_the_demo_does_not_call_pictures_the_same_that_are_farther_off(tmp_path):
    """With --steps there may be too few."""
    close, far = "makes as many steps as come as close", "With so few steps DPM-Solver++(2M) is farther from"
    for error, title, said, unsaid in ((0.1, "The same 2 pictures", close, far), (0.3, "<h1>2 pictures", far, close)):
        text = page_of_the_demo(tmp_path, error_of_fastdiff=error).read_text(encoding="utf-8")
        assert title in text
        assert said in text
        assert unsaid not in text


@NEEDS_BROWSER
def test_the_page_of_the_demo_in_a_browser(tmp_path):
    document, log = browse(page_of_the_demo(tmp_path))
    assert "CONSOLE" not in log
    assert "2.00\u00d7, 0.5 s" in document


def test_the_other_fastdiff_is_recognised(tmp_path):
    """PyPI's text-diff library in our place: its __init__ instead of ours, beside our modules."""
    package = tmp_path / "fastdiff"
    package.mkdir()
    source = Path(fastdiff.__file__).parent
    (package / "__init__.py").write_text("from .compare import compare\n")
    (package / "compare.py").write_text("def compare(a, b): ...\n")
    for part in ("cli", "errors.py"):
        (package / part).symlink_to(source / part)
    # An editable install finds its modules before the path is asked: Python's own finders alone.
    code = (
        "import sys; sys.meta_path = [each for each in sys.meta_path if isinstance(each, type)]; "
        "from fastdiff.cli.main import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path,
                            env=os.environ | {"PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert result.returncode != 0
    assert "text-diff library" in result.stderr
    assert "pip uninstall" in result.stderr
