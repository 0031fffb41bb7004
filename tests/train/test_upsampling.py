"""Training of an upsampler: reproducible, it learns, exported, loaded again, sampled alone and in a cascade."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import run, stopped_and_resumed

import fastdiff
from fastdiff.cli.main import main
from fastdiff.models.bundled.eight_bits import rounded
from fastdiff.models.bundled.upsampler import Upsampler, UpsamplerConfig
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.export import export
from fastdiff.train.emoji.objectives import make_objective
from fastdiff.train.emoji.recipes import UpsamplerRecipe
from fastdiff.train.emoji.upsampling import Upsampling, smaller
from fastdiff.train.loop import Training

RECIPE = UpsamplerRecipe(
    name="tiny-sr", size=32, crop=16, augment=0.4, steps=4, batch=4, warmup=2, ema_decay=0.5, precision="float32",
    network=UpsamplerConfig(channels=(8, 16), blocks=1, groups=4, embedding_channels=16),
)  # fmt: skip


@pytest.fixture
def data():
    """Squares of two colours at random places."""
    rng = np.random.default_rng(0)
    images = np.full((20, 3, 32, 32), 255, np.uint8)
    for image in images:
        top, left = rng.integers(0, 20, 2)
        image[:, top : top + 12, left : left + 12] = rng.integers(0, 200, 3)[:, None, None]
    return EmojiData(images, np.arange(20) % 2, np.ones(20), np.arange(20) % 5 == 4, tuple("x" * 20), ("a", "b"))


def test_a_resumed_run_is_the_same_and_trains_every_parameter(tmp_path, data):
    objective = make_objective(RECIPE, data)
    assert isinstance(objective, Upsampling)
    fresh = {name: p.clone() for name, p in Training(objective, tmp_path).model.named_parameters()}
    whole = run(objective, tmp_path / "whole", 4)
    resumed = stopped_and_resumed(objective, tmp_path / "part")
    assert resumed.losses == whole.losses
    for (name, a), b in zip(whole.ema.module.named_parameters(), resumed.ema.module.parameters()):
        assert torch.equal(a, b)
        assert not torch.equal(a, fresh[name]), name


def test_it_learns_and_looks_at_the_small_picture(tmp_path, data):
    objective = make_objective(replace(RECIPE, steps=300, learning_rate=3e-3), data)
    training = run(objective, tmp_path)
    assert np.mean(training.losses[-30:]) < 0.8 * np.mean(training.losses[:10])

    def loss(small):
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            return float(objective._loss(training.ema.module, objective.validation_images, small, generator))

    assert loss(objective.validation_small) < 0.9 * loss(objective.validation_small.roll(1, 0))


def test_the_crops_of_both_pictures_are_the_same_part(data):
    """The small crop is what the large one becomes when it is made smaller."""
    objective = make_objective(RECIPE, data)
    generator = torch.Generator().manual_seed(0)
    ramp = torch.arange(32)[None] + 4 * torch.arange(32)[:, None]
    large = ramp.expand(8, 3, 32, 32).to(torch.uint8)
    means = torch.nn.functional.avg_pool2d(large.float(), 4)
    crops, small = objective.crops(large, means, generator)
    assert crops.shape == (8, 3, 16, 16)
    assert torch.equal(torch.nn.functional.avg_pool2d(crops.float(), 4), small)
    assert len({crop.float().mean().item() for crop in crops}) > 3  # at several places
    assert {bool(crop[0, 0, 0] < crop[0, 0, -1]) for crop in crops} == {True, False}  # and mirrored


def test_the_small_pictures_are_those_that_the_font_would_give():
    """Lanczos from 128 pixels, or from the 136 of the font: not one grey value of a smooth picture differs by 3."""
    y, x = np.meshgrid(*[np.linspace(0, 3, 136)] * 2, indexing="ij")
    whole = Image.fromarray((127 + 100 * np.sin(x + y)).astype(np.uint8)).convert("RGB")
    direct = np.asarray(whole.resize((32, 32), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    large = np.asarray(whole.resize((128, 128), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    found = smaller(torch.from_numpy(large.copy())[None], 32)[0]
    assert found.dtype == torch.uint8
    assert np.abs(found.numpy().astype(int) - direct.astype(int)).max() < 3


@pytest.fixture
def folder(tmp_path, data, monkeypatch):
    """A folder with the exported model, in place of the package's."""
    training = run(make_objective(RECIPE, data), tmp_path / "run")
    export(training, tmp_path / "tiny-sr")
    monkeypatch.setattr("fastdiff.models.bundled.loading.folder", lambda: tmp_path)
    return tmp_path


def test_export_loads_again(folder, data):
    model = fastdiff.load("tiny-sr")
    training = Training(make_objective(RECIPE, data), folder / "run")
    for a, b in zip(model.parameters(), rounded(training.ema.module).parameters()):
        assert torch.equal(a, b)
    assert model.info.card["psnr"] > 0
    assert "dB on the held-out emoji" in (folder / "tiny-sr.md").read_text()
    image = torch.zeros(3, 8, 8)
    x = fastdiff.sample(model, (2, *model.info.shape), steps=2, seed=0, cond=model.info.condition(None, 2, image=image))
    assert x.shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"tiny-sr needs an image: the small picture, \(3, 8, 8\) in \[-1, 1\]"):
        model.info.condition(None, 2)
    for wrong in (torch.zeros(3, 9, 8), torch.zeros(1, 8, 8), torch.zeros(3, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"image must be the small picture, \(3, 8, 8\) in \[-1, 1\], one or"):
            model.info.condition(None, 2, image=wrong)
    with pytest.raises(TypeError, match="image must be a tensor"):
        model.info.condition(None, 2, image="picture.png")


def test_in_a_cascade(folder):
    """The stage before gives the small pictures, with noise of which the network is told."""
    model, seen = fastdiff.load("tiny-sr"), []
    model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    options = dict(schedule="cosine", prediction="v", steps=2)
    stages = [
        fastdiff.Stage(lambda x, t: 0.1 * x, (3, 8, 8), **options),
        fastdiff.Stage(model, model.info.shape, takes="image", augment=0.2, level="level", steps=2),
    ]
    x = fastdiff.cascade(stages, 2, seed=0)
    assert x.shape == (2, 3, 32, 32)
    assert torch.equal(seen[0]["level"], torch.full((2,), float(model.info.schedule.model_time(0.2))))


def test_the_command(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    Image.new("RGB", (8, 8), "red").save("small.png")
    sample = ["sample", "--model", "tiny-sr", "--count", "2", "--steps", "2", "--zoom", "1"]
    with pytest.raises(SystemExit) as stopped:
        main([*sample, "--image", "small.png", "--out", "large.png"])
    assert stopped.value.code == 0
    assert Image.open("large.png").size == (2 * 34 + 2, 36)
    capsys.readouterr()
    for more, message in (
        ([], "tiny-sr needs --image: the small picture, 8x8 pixels"),
        (["--image", "small.png", "--strength", "0.5"], "tiny-sr does not start from --image, it is conditioned on it"),
        (["--image", "small.png", "--class", "food"], "--class: tiny-sr takes neither classes nor prompts"),
        (["--image", "nothing.png"], "nothing.png: No such file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*sample, *more, "--out", "none.png"])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (folder / "none.png").exists()
    for command in (["profile", "--model", "tiny-sr"], ["demo", "--model", "tiny-sr", "--out", "demo"]):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        assert "picture" in capsys.readouterr().err


@torch.no_grad()
def test_the_noise_that_is_told_matters_and_none_is_time_zero():
    torch.manual_seed(0)
    model = Upsampler(RECIPE.network)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, t, image = torch.randn(2, 3, 32, 32), torch.tensor([10.0, 500.0]), torch.randn(2, 3, 8, 8)
    plain = model(x, t, image)
    assert torch.equal(model(x, t, image, torch.zeros(2)), plain)
    assert not torch.allclose(model(x, t, image, torch.full((2,), 300.0)), plain)
    assert torch.equal(model(x, t, image[:1]), model(x, t, image[:1].repeat(2, 1, 1, 1)))
    larger = model(torch.randn(1, 3, 48, 64), t[:1], torch.randn(1, 3, 12, 16))
    assert larger.shape == (1, 3, 48, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(image=None), r"image must be \(2, 3, 8, 8\), the small picture of each sample, got None"),
        (dict(image=torch.zeros(2, 3, 16, 16)), r"image must be \(2, 3, 8, 8\), .* got \(2, 3, 16, 16\)"),
        (dict(image=torch.zeros(2, 1, 8, 8)), r"image must be \(2, 3, 8, 8\), .* got \(2, 1, 8, 8\)"),
        (dict(x=torch.zeros(2, 3, 32, 30)), r"x must be \(B, 3, H, W\) with H and W divisible by 4 and 4, got"),
        (dict(x=torch.zeros(2, 32)), r"x must be \(B, 3, H, W\)"),
        (dict(t=torch.zeros(1)), r"t must be \(2,\), one time a sample, got \(1,\)"),
        (dict(level=torch.zeros(1)), r"level must be \(2,\), one a sample, got \(1,\)"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    given = dict(x=torch.zeros(2, 3, 32, 32), t=torch.zeros(2), image=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=message):
        Upsampler(RECIPE.network)(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(crop=18), "crop and size must be divisible by 4, crop at most size, got 18 and 32"),
        (dict(crop=64), "crop at most size, got 64 and 32"),
        (dict(augment=1.5), r"augment must be a time in \[0, 1\], got 1.5"),
    ],
)
def test_bad_recipes(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)
