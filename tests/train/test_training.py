"""Training: reproducible, resumed to the bit, interruptible; the data set."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdiff.cli.main import main
from fastdiff.errors import WeightsError
from fastdiff.files import locked
from fastdiff.models import bundled
from fastdiff.models.bundled.controlled import EdgeLatentDiffusion
from fastdiff.models.bundled.eight_bits import rounded
from fastdiff.models.ldm import LatentDiffusion
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.train.emoji import data as emoji_data
from fastdiff.train.emoji.data import EmojiData, emoji_groups, find_font, load_emoji
from fastdiff.train.emoji.export import export
from fastdiff.train.emoji.pixels import PixelDiffusion
from fastdiff.train.emoji.recipes import RECIPES, Recipe
from fastdiff.train.loop import Training

RECIPE = Recipe(
    name="tiny",
    network=UNetConfig(channels=(8, 16), blocks=1, attention_levels=(1,), num_classes=2, groups=4, head_channels=8),
    size=8, steps=6, batch=4, warmup=2, precision="float32", ema_decay=0.5,
)  # fmt: skip


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    images = (labels[:, None, None, None] * 235 + rng.integers(0, 20, (20, 3, 8, 8))).astype(np.uint8)
    return EmojiData(images, labels, np.ones(20), np.arange(20) % 5 == 4, tuple("x" * 20), ("dark", "light"))


def run(recipe, data, folder, on_step=lambda *_: None):
    folder.mkdir(exist_ok=True)
    training = Training(PixelDiffusion(recipe, data), folder)
    training.run(on_step=on_step, on_validation=lambda _: None)
    return training


def weights(training):
    return torch.cat([p.detach().flatten() for p in training.ema.module.parameters()])


def test_a_seed_reproduces_the_run(tmp_path, data):
    a, b, c = (run(replace(RECIPE, seed=s), data, tmp_path / str(i)) for i, s in enumerate((0, 0, 1)))
    assert torch.equal(weights(a), weights(b))
    assert a.losses == b.losses != c.losses


@pytest.mark.parametrize("moment", ["optimizer", "ema", "between"])
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, data, moment):
    """Ctrl-C in the middle of step 3 or right after it: that step is finished, saved, and not done twice."""
    whole = run(RECIPE, data, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    training, steps = Training(PixelDiffusion(RECIPE, data), tmp_path / "parts"), []

    def press(*_):
        steps.append(training.step)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    if moment == "optimizer":
        training.optimizer.register_step_post_hook(press)
    elif moment == "ema":
        update = training.ema.update_parameters
        training.ema.update_parameters = lambda model: (press(), update(model))
    with pytest.raises(KeyboardInterrupt):
        training.run(on_step=press if moment == "between" else lambda *_: None, on_validation=lambda _: None)
    resumed = Training(PixelDiffusion(RECIPE, data), tmp_path / "parts")
    assert resumed.step == 3
    resumed.run(on_step=lambda *_: None, on_validation=lambda _: None)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.losses == whole.losses
    assert [row[:3] for row in resumed.log] == [row[:3] for row in whole.log]


def test_it_learns(tmp_path, data):
    training = run(replace(RECIPE, steps=400, learning_rate=3e-3), data, tmp_path)
    assert np.mean(training.losses[-20:]) < 0.6 * np.mean(training.losses[:10])
    assert training.log[-1][0] == 400


def test_every_parameter_is_trained(tmp_path, data):
    """A run in which all levels but the first got no gradient went unnoticed for hours: its loss fell all the same."""
    torch.manual_seed(RECIPE.seed)
    network = replace(RECIPE.network, positions=8)
    fresh = dict(UNet(network).named_parameters())
    trained = run(replace(RECIPE, network=network, steps=8), data, tmp_path).model.named_parameters()
    assert [name for name, p in trained if torch.equal(p, fresh[name]) or (p == 0).all()] == []


def test_another_recipe_or_other_data_is_refused(tmp_path, data):
    run(RECIPE, data, tmp_path)
    with pytest.raises(ValueError, match="made with another recipe"):
        Training(PixelDiffusion(replace(RECIPE, learning_rate=1.0), data), tmp_path)
    with pytest.raises(ValueError, match="made with another data"):
        Training(PixelDiffusion(RECIPE, replace(data, labels=1 - data.labels)), tmp_path)
    longer = PixelDiffusion(replace(RECIPE, steps=9), data)
    assert Training(longer, tmp_path).step == 6  # more steps are the same run


@pytest.mark.parametrize("content", [b"", b"half", "truncated", "a state dict", "a list"])
def test_a_damaged_checkpoint_is_named(tmp_path, data, content):
    path = tmp_path / "checkpoint.pt"
    if content == "truncated":
        run(RECIPE, data, tmp_path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"a": torch.ones(3)} if content == "a state dict" else [torch.ones(3)], path)
    with pytest.raises(WeightsError, match=r"checkpoint\.pt is (damaged or )?no checkpoint"):
        Training(PixelDiffusion(RECIPE, data), tmp_path)


def test_a_full_disk_names_the_checkpoint_and_leaves_the_last_one(tmp_path, data, monkeypatch):
    training = run(RECIPE, data, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(state, path):
        path.write_bytes(b"part")
        raise RuntimeError("[enforce fail at inline_container.cc:863] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt: No space left on device"):
        training.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.csv"]


KILLED = """
import os, sys, torch
from pathlib import Path
from fastdiff.files import locked, replacing
with locked(Path(sys.argv[1])), replacing(Path(sys.argv[1]) / "checkpoint.pt") as path:
    path.write_bytes(b"part")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no such kill")
def test_a_run_that_is_killed_while_it_writes_goes_on_from_the_checkpoint_before(tmp_path, data):
    whole = run(RECIPE, data, tmp_path / "whole")
    folder = tmp_path / "parts"
    folder.mkdir()
    run(replace(RECIPE, steps=2), data, folder)
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert sorted(path.name.split("-")[0] for path in folder.glob(".*")) == [".lock", ".writing"]
    resumed = Training(PixelDiffusion(RECIPE, data), folder)
    assert resumed.step == 2
    resumed.run(on_step=lambda *_: None, on_validation=lambda _: None)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "log.csv"]
    assert resumed.step == whole.step


OTHER = """
import sys, time
from pathlib import Path
from fastdiff.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_two_processes_in_one_folder_are_refused(tmp_path, data, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=rf"in use by another fastdiff \(process {process.pid}\)"):
            run(RECIPE, data, tmp_path)
        monkeypatch.setattr("fastdiff.cli.train.load_emoji", lambda *_, **__: pytest.fail("was not said first"))
        with pytest.raises(SystemExit):
            main(["train", "emoji-unet-32", "--out", str(tmp_path)])
    finally:
        process.kill()  # as the system does when memory runs out: the lock must not stay
        process.communicate()
    assert run(RECIPE, data, tmp_path).step == RECIPE.steps
    assert not (tmp_path / ".lock").exists()
    with locked(tmp_path), pytest.raises(ValueError, match="in use"), locked(tmp_path):
        pass
    with locked(tmp_path):  # and again
        pass


def test_export_loads_again(tmp_path, data):
    training = run(RECIPE, data, tmp_path)
    export(training, tmp_path / "tiny")
    model = bundled.load_files(tmp_path / "tiny.json")
    for a, b in zip(model.parameters(), rounded(training.ema.module).parameters()):
        assert torch.equal(a, b)
    assert model.info.classes == data.classes
    assert model.info.card["steps"] == 6


def test_bad_precision(tmp_path, data):
    with pytest.raises(ValueError, match="unknown precision"):
        PixelDiffusion(replace(RECIPE, precision="float8"), data)


def test_the_bundled_models_are_what_their_recipes_make():
    for name in bundled.names():
        model, recipe = bundled.load(name), RECIPES[name]
        if isinstance(model, EdgeLatentDiffusion):
            assert model.base.info.name == recipe.base
            assert model.net.config.hint_widths == recipe.hint_widths
        else:
            config = model.unet.config if isinstance(model, LatentDiffusion) else model.config
            assert config == recipe.network
        assert (model.info.prediction, model.info.schedule.name) == (recipe.prediction, recipe.schedule)
        if isinstance(model, LatentDiffusion):
            assert model.autoencoder.config == recipe.autoencoder.network
            assert model.info.shape == recipe.latent_shape


# ---- data -----------------------------------------------------------------------------------------------------------


def test_groups():
    groups = emoji_groups()
    assert list(groups) == [
        "smileys",
        "people",
        "animals",
        "food",
        "travel",
        "activities",
        "objects",
        "symbols",
        "flags",
    ]
    assert sum(map(len, groups.values())) == len({e for group in groups.values() for e in group}) == 1914
    assert "\U0001f1f3\U0001f1f4" in groups["flags"]


def font_or_skip():
    try:
        return find_font()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_emoji_of_the_font():
    font_or_skip()
    data = load_emoji(32)
    assert data.images.shape[1:] == (3, 32, 32)
    assert len(data.images) > 3000
    assert data.classes == tuple(emoji_groups())
    named = dict(zip(data.emoji, data.names))
    assert named["\U0001f34e"] == "red apple"
    assert named["\U0001f1f3\U0001f1f4"] == "flag Norway"
    assert named["\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"] == "flag Scotland"
    # One skin tone at most, and the tones of one emoji share its weight.
    of = dict(zip(data.emoji, data.weights))
    assert of["\U0001f44b"] == pytest.approx(1 / 6)
    assert of["\U0001f600"] == 1
    held = {emoji_data._bare(e) for e, h in zip(data.emoji, data.held_out) if h}
    trained = {emoji_data._bare(e) for e, h in zip(data.emoji, data.held_out) if not h}
    assert not held & trained
    # On white, and the picture of the Japanese flag is red in the middle.
    assert np.median(data.images[:, :, 0, 0]) == 255
    flag = data.images[data.emoji.index("\U0001f1ef\U0001f1f5")]
    red, green, blue = flag[:, 14:18, 14:18].reshape(3, -1).mean(1)
    assert red > 150
    assert max(green, blue) < 100


def test_a_font_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="apt install fonts-noto-color-emoji"):
        find_font("/nowhere/NotoColorEmoji.ttf")
