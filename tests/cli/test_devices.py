"""--device and --dtype of the commands: refused before anything is made, and half precision on the CPU."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from PIL import Image

import fastdiff
from fastdiff.cli import demo
from fastdiff.cli.main import main
from fastdiff.profiling import get_extractor, get_subject
from fastdiff.profiling.subject import device_argument

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
COMMANDS = {
    "sample": ["sample"],
    "demo": ["demo"],
    "edit variation": ["edit", "variation", "--image", "a.png"],
    "edit prompt": ["edit", "prompt", "--source", "red heart", "--prompt", "blue heart"],
    "profile": ["profile"],
    "verify": ["verify"],
    "bench models": ["bench", "models"],
    "bench ops": ["bench", "ops"],
}


def run(*arguments):
    """The exit status of a command in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(each) for each in arguments])
    return left.value.code or 0


@NO_GPU
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "gpu"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there(command, device, tmp_path, capfd):
    assert run(*COMMANDS[command], "--device", device) == 2
    said = capfd.readouterr()
    (line,) = said.err.splitlines()
    assert f"'{device}' cannot be used: " in line
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "bench ops"])
def test_a_dtype_that_is_none(command, tmp_path, capfd):
    assert run(*COMMANDS[command], "--dtype", "float61") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "float61" in line
    assert "bfloat16" in line  # what there is
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sample_in_half_precision(dtype, tmp_path, capfd):
    pixels = {}
    for each in ("float32", dtype):
        options = ["--steps", 2, "--count", 2, "--zoom", 1, "--dtype", each, "--device", "cpu", "--json"]
        assert run("sample", "--class", "animals", "--out", f"{each}.png", *options) == 0
        facts = json.loads(capfd.readouterr().out)
        assert (facts["device"], facts["dtype"]) == ("cpu", each)
        assert facts["seconds"] > 0
        pixels[each] = np.asarray(Image.open(f"{each}.png")).astype(float)
    apart = np.abs(pixels[dtype] - pixels["float32"]).mean()
    assert 0 < apart < 300 * torch.finfo(getattr(torch, dtype)).eps  # of 255 grey levels


def test_a_picture_to_start_from_in_half_precision(tmp_path, capfd):
    Image.new("RGB", (40, 40), (200, 30, 30)).save("red.png")
    options = ["--image", "red.png", "--steps", 2, "--count", 1, "--dtype", "bfloat16"]
    assert run("sample", "--model", "emoji-dit-64", "--class", "animals", *options) == 0
    assert Path("grid.png").is_file()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_verify_in_half_precision(dtype, capfd):
    assert run("verify", "--batch", 1, "--dtype", dtype, "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["same"], found["dtype"], found["against"]) == (True, dtype, "float64")
    assert found["outputs"][0]["rms"] <= found["outputs"][0]["rms_bound"] < 30 * torch.finfo(getattr(torch, dtype)).eps


def test_profile_keeps_the_device(tmp_path):
    options = dict(solvers=["ddim"], steps=[4], samples=4, reference_steps=8, out=tmp_path / "a")
    found = fastdiff.profile(toy.subject, device="cpu", precisions=["float32", "bfloat16"], **options)
    assert [row["error"] for row in found.rows] == ["", ""]
    assert found.facts["device"] == "cpu"
    assert all(pictures.device.type == "cpu" for pictures in found.converged.values())
    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert plan["fixed"]["device"] == plan["asked"]["device"] == "cpu"

    # the same sweep, of another device: it is neither resumed nor mixed
    for part in ("fixed", "asked"):
        plan[part]["device"] = "cuda:0"
    (tmp_path / "a" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="was made with device 'cuda:0', not 'cpu'"):
        fastdiff.profile(toy.subject, device="cpu", resume=True, out=tmp_path / "a")
    del plan["fixed"]["device"], plan["asked"]["device"]  # of a version that knew none
    (tmp_path / "a" / "plan.json").write_text(json.dumps(plan))
    again = fastdiff.profile(toy.subject, resume=True, out=tmp_path / "a")
    assert len(again.rows) == 2


def test_subjects_on_another_device():
    """Their model, conditions and code; meta stands for a device that is not there."""
    meta = torch.device("meta")
    subject = toy.subject().to(meta)
    assert subject.device == meta
    cond, uncond = subject.conditions_of(0, 3, torch.bfloat16)
    assert {(t.device, t.dtype) for t in (*cond.values(), *uncond.values())} == {(meta, torch.bfloat16)}
    with pytest.raises(ValueError, match="cannot be moved to meta"):
        fastdiff.profiling.Subject("f", lambda x, t: x, (3, 8, 8), toy.SCHEDULE, "eps").to(meta)
    assert device_argument(torch.device("cpu")) == device_argument(None) == ""
    assert device_argument(torch.device("cuda:1")) == ", device='cuda:1'"

    def made(device):
        assert device == torch.device("cpu")
        return toy.subject()

    assert get_subject(made, device="cpu").name == "toy"  # an entry point that wants to know it
    assert get_subject("toy:subject", device="cpu").device.type == "cpu"
    with pytest.raises(ValueError, match="cannot be used"):
        get_subject("toy:subject", device="mps")


def test_extractors_are_where_the_model_is():
    pictures = torch.rand(5, 3, 32, 32) * 2 - 1
    extractor = get_extractor("emoji", device="cpu")
    expected = extractor(pictures)
    assert {p.device.type for p in get_extractor("emoji", device="meta").function.parameters()} == {"meta"}
    wanted = []

    def function(x):
        wanted.append((x.device.type, x.dtype))
        return x.mean((2, 3))

    get_extractor(function)(pictures.bfloat16())
    assert wanted == [("cpu", torch.float32)]
    assert np.array_equal(extractor(pictures.double()), expected)


@pytest.mark.long  # without instructions for bfloat16, PyTorch's calls take six times as long as in float32
def test_the_demo_in_half_precision(monkeypatch, capfd):
    for name, value in (("CONVERGED_STEPS", 4), ("CURVE_STEPS", (2,)), ("QUICK_PICTURES", 1)):
        monkeypatch.setattr(demo, name, value)
    options = ["--quick", "--baseline-steps", 2, "--steps", 2, "--dtype", "bfloat16", "--json"]
    assert run("demo", *options) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["agree"] is True
    assert (facts["dtype"], facts["compared_with"]) == ("bfloat16", "float32")
    assert 0 < facts["difference_at_equal_steps"] <= facts["tolerance"] < 0.2


def test_sample_of_an_entry_point_in_half_precision(tmp_path, capfd):
    for dtype in ("float32", "bfloat16"):
        options = ["--model", "toy:subject", "--guidance", 1, "--steps", 2, "--count", 2, "--dtype", dtype, "--json"]
        assert run("sample", *options, "--out", f"{dtype}.png") == 0
        facts = json.loads(capfd.readouterr().out)
        assert (facts["device"], facts["dtype"], facts["count"]) == ("cpu", dtype, 2)
    found = [np.asarray(Image.open(f"{dtype}.png")).astype(int) for dtype in ("float32", "bfloat16")]
    assert np.abs(found[0] - found[1]).max() <= 32
    assert run("sample", "--model", "toy:subject", "--device", "mps") == 2
