"""`fastdiff train folder`: from a folder of pictures to a model that `fastdiff sample` takes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff.cli.main import main
from fastdiff.files import locked
from fastdiff.train import networks


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(30):
        path = tmp_path / "images" / ("dark" if k % 2 else "light") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 100, (20, 24, 3)).astype(np.uint8) + np.uint8(150 * (k % 2 == 0))).save(path)
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(networks._UNETS, "unet-16", (16, (16, 32), (1,)))


def run(*arguments, status=0):
    with pytest.raises(SystemExit) as ended:
        main(["train", "folder", *map(str, arguments)])
    assert ended.value.code == status


def options(images, out, *more):
    return ("--images", images, "--model", "unet-16", "--out", out, "--batch", 4, "--validate-every", 3, *more)


def test_own_pictures_are_trained_on_and_sampled(images, tmp_path, capsys):
    out = tmp_path / "run"
    run(*options(images, out, "--steps", 3, "--mirror", "--ema", "0.9,0.5"))
    said = capsys.readouterr().err
    assert "30 pictures of 16 pixels" in said
    assert "step 3 of 3: loss" in said
    assert "fastdiff sample --model" in said
    run(*options(images, out, "--steps", 6, "--mirror", "--ema", "0.9,0.5"))  # goes on
    assert sorted(path.name for path in out.glob("samples-*.png")) == ["samples-000003.png", "samples-000006.png"]
    assert (out / "average-0.5.safetensors").is_file()
    assert [row.split(",")[0] for row in (out / "log.csv").read_text().splitlines()] == ["step", "3", "6"]
    with pytest.raises(SystemExit) as ended:
        main(
            ["sample", "--model", str(out), "--steps", "3", "--count", "2", "--out", str(tmp_path / "x.png"), "--json"]
        )
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["count"] == 2
    assert Image.open(tmp_path / "x.png").size[1] > 16
    assert fastdiff.models.load(out).info.card["settings"]["ema_decay"] == 0.9


def test_a_class_of_ones_own_model_is_sampled(images, tmp_path, capsys):
    out = tmp_path / "run"
    run(*options(images, out, "--steps", 3, "--classes"))
    model = fastdiff.models.load(out)
    assert model.info.classes == ("dark", "light")
    common = ["--model", str(out), "--steps", "2", "--count", "2", "--seed", "5", "--guidance", "1.5"]
    for options_of_a_class, status, said in (
        (["--class", "light"], 0, ""),
        (["--class", "bright"], 2, "unknown class 'bright'"),
        (["--prompt", "light"], 2, "takes no prompts, give --class"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["sample", *common, *options_of_a_class, "--out", str(tmp_path / "x.png"), "--json"])
        assert ended.value.code == status
        captured = capsys.readouterr()
        assert said in captured.err
        assert status or json.loads(captured.out)["class"] == "light"
    cond, uncond = model.info.condition("light", 2), model.info.condition(None, 2)
    expected = fastdiff.sample(
        model, (2, 3, 16, 16), cond=cond, uncond=uncond, guidance=1.5, steps=2, seed=5, solver="dpmpp-2m"
    )
    given = dict(count=2, batch=2, shard=2, steps=2, seed=5, guidance=1.5, solver="dpmpp-2m", prompts="light")
    fastdiff.distributed.sample(str(out), tmp_path / "many", **given)
    with np.load(tmp_path / "many" / "samples" / "000000000-000000001.npz") as file:
        np.testing.assert_allclose(file["samples"], expected.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torchrun needs libuv there")
def test_torchrun_shares_the_batches_and_one_process_goes_on(images, tmp_path):
    out = tmp_path / "run"
    command = ["fastdiff", "train", "folder", "--images", images, "--model", "unet-16", "--out", out, "--batch", "2"]
    code = f"import sys; from fastdiff.cli.main import main; main({[str(each) for each in command[1:]]} + sys.argv[1:])"
    ours = [sys.executable, "-c", code]
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = subprocess.run(
        [sys.executable, *run, *ours, "--steps", "1"], capture_output=True, text=True, check=False, env=environment
    )
    assert both.returncode == 0, both.stderr
    assert both.stderr.count("30 pictures of 16 pixels") == 1  # one of them speaks
    assert torch.load(out / "checkpoint.pt")["recipe"]["accumulate"] == 2
    one = subprocess.run(
        [*ours, "--steps", "2", "--accumulate", "2"], capture_output=True, text=True, check=False, env=environment
    )
    assert one.returncode == 0, one.stderr
    assert torch.load(out / "checkpoint.pt")["step"] == 2


def test_folders_become_classes(images, tmp_path):
    run(*options(images, tmp_path / "run", "--steps", 1, "--classes", "--loss", "edm", "--warmup", 0))
    info = fastdiff.models.load(tmp_path / "run").info
    assert info.classes == ("dark", "light")
    assert (info.schedule.name, info.prediction) == ("edm", "edm")


def test_unreadable_pictures_end_the_command_unless_they_may_be_skipped(images, tmp_path, capsys):
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    run(*options(images, tmp_path / "run", "--steps", 1), status=2)
    said = capsys.readouterr().err
    assert "1 of 31 pictures" in said
    assert "broken.png" in said
    assert "--skip-unreadable" in said
    assert not (tmp_path / "run").exists()
    run(*options(images, tmp_path / "run", "--steps", 1, "--skip-unreadable"))
    assert "30 pictures of 16 pixels, 1 left out" in capsys.readouterr().err


def test_a_folder_that_is_trained_in_is_refused_before_the_pictures_are_read(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastdiff.cli.train_folder.Pictures", lambda *_, **__: pytest.fail("were read first"))
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        run(*options(images, tmp_path / "run"), status=2)
    assert "in use by another fastdiff" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_command_with_the_step(images, tmp_path, capsys):
    run(*options(images, tmp_path / "run", "--learning-rate", 1e30, "--warmup", 0, "--steps", 20), status=2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("fastdiff: ")
    assert "at step " in said
    assert "nothing was saved before" in said


def test_a_truncated_checkpoint_is_named(images, tmp_path, capsys):
    run(*options(images, tmp_path / "run", "--steps", 1))
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-3000])
    run(*options(images, tmp_path / "run", "--steps", 2), status=2)
    assert f"{path} is damaged or no checkpoint" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--images must be given"),
        (("--images", "nowhere"), "there is no folder of pictures 'nowhere'"),
        (("--images", ".", "--model", "unet32"), "unknown model to train 'unet32'; did you mean 'unet-32'"),
        (("--images", ".", "--loss", "mse"), "unknown loss 'mse'"),
        (("--images", ".", "--schedule", "edm"), "schedule 'edm' has no uniform time"),
        (("--images", ".", "--prediction", "eps+variance", "--loss", "ddpm"), "learned"),
        (("--images", ".", "--ema", "x"), "--ema must be numbers separated by commas, got 'x'"),
        (("--images", ".", "--ema", "1.5"), "must lie in [0, 1), got 1.5"),
        (("--images", ".", "--precision", "float8"), "unknown precision 'float8'"),
        (("--images", ".", "--device", "cuda:99"), "--device 'cuda:99' cannot be used"),
        (("--images", ".", "--font", "x"), "--font: not for folder"),
    ],
)
def test_arguments_that_cannot_be(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    run(*arguments, status=2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_options_of_folder_are_for_folder_alone(capsys):
    with pytest.raises(SystemExit):
        main(["train", "emoji-unet-32", "--images", "x", "--batch", "3"])
    assert "--images, --batch: only for folder" in capsys.readouterr().err


def test_the_networks_have_the_size_in_their_name():
    for name in networks.NETWORKS:
        size = networks.size_of(name)
        assert f"-{size}" in name
        with torch.no_grad():
            x = networks.make_network(name)(torch.zeros(1, 3, size, size), torch.zeros(1))
        assert x.shape == (1, 3, size, size)
