"""Training on latents: the autoencoder, then a network on what it encodes; reproducible, exported, loaded again."""

from dataclasses import replace

import pytest
import torch
from small_training import AUTOENCODER, CLASSES, PROMPTS, fresh_autoencoder, run, squares, stopped_and_resumed

import fastdiff
from fastdiff.cli import train as command
from fastdiff.models import bundled
from fastdiff.models.bundled.eight_bits import rounded
from fastdiff.models.bundled.emoji_prompts import EMOJI_PROMPTS
from fastdiff.train.emoji.autoencoding import Autoencoding
from fastdiff.train.emoji.data import find_font, load_emoji
from fastdiff.train.emoji.export import describe, export
from fastdiff.train.emoji.latents import without
from fastdiff.train.emoji.objectives import make_objective
from fastdiff.train.emoji.recipes import RECIPES
from fastdiff.train.loop import Training


@pytest.fixture
def data():
    return squares()


@pytest.fixture
def autoencoder():
    return fresh_autoencoder()


@pytest.mark.parametrize("recipe", [AUTOENCODER, PROMPTS, CLASSES], ids=lambda recipe: recipe.name)
def test_a_resumed_run_is_the_same_and_trains_every_parameter(tmp_path, data, autoencoder, recipe):
    objective = make_objective(recipe, data, autoencoder)
    fresh = {name: p.clone() for name, p in Training(objective, tmp_path).model.named_parameters()}
    whole = run(objective, tmp_path / "whole", 4)
    resumed = stopped_and_resumed(objective, tmp_path / "part")
    assert resumed.losses == whole.losses
    for (name, a), b in zip(whole.ema.module.named_parameters(), resumed.ema.module.parameters()):
        assert torch.equal(a, b)
        frozen = recipe is not AUTOENCODER and name.startswith("autoencoder.")
        assert torch.equal(a, fresh[name]) == frozen, name


def test_the_autoencoder_learns(tmp_path, data):
    objective = make_objective(replace(AUTOENCODER, steps=150, precision="float32"), data)
    assert isinstance(objective, Autoencoding)
    before = objective.psnr(Training(objective, tmp_path / "x").model)
    after = objective.psnr(run(objective, tmp_path).ema.module)
    assert after > before + 5


def test_latents_have_unit_variance(data, autoencoder):
    objective = make_objective(PROMPTS, data, autoencoder)
    assert objective.latents.std() == pytest.approx(1, abs=1e-5)
    model = objective.make_network()
    again = model.encode(objective.pixels(torch.from_numpy(data.images)))
    assert torch.allclose(again, objective.latents, atol=1e-4)


@pytest.mark.parametrize("recipe", [PROMPTS, CLASSES], ids=lambda recipe: recipe.name)
def test_export_loads_again(tmp_path, data, autoencoder, recipe):
    objective = make_objective(recipe, data, autoencoder)
    training = run(objective, tmp_path)
    export(training, tmp_path / recipe.name, autoencoder={**describe(training), "psnr": 20.0})
    model = bundled.load_files(tmp_path / f"{recipe.name}.json")
    assert "undefined" not in (tmp_path / f"{recipe.name}.md").read_text().lower()
    for a, b in zip(model.parameters(), rounded(training.ema.module).parameters()):
        assert torch.equal(a, b)
    assert model.info.shape == (4, 4, 4)
    name = "dark square 2" if recipe is PROMPTS else "dark"
    z = fastdiff.sample(model, (2, *model.info.shape), steps=2, seed=0, guidance=2.0,
                        cond=model.info.condition(name, 2), uncond=model.info.condition(None, 2))  # fmt: skip
    assert bundled.to_pictures(model, z).shape == (2, 3, 16, 16)


def test_the_command_trains_both_stages(tmp_path, data, monkeypatch):
    """`fastdiff train` on a small recipe: the autoencoder is trained once, and its run is where the next one looks."""
    recipes = {recipe.name: recipe for recipe in (PROMPTS, CLASSES)}
    monkeypatch.setattr(command, "RECIPES", recipes)
    monkeypatch.setattr(command, "load_emoji", lambda size, font: data)
    for name in recipes:
        command.run(name, str(tmp_path / name), None, None, None, "cpu")
        folder = tmp_path / name
        made = {path.name for path in folder.iterdir()}
        suffixes = (".json", ".safetensors", ".md", ".png", "-loss.png")
        assert made >= {f"{name}{suffix}" for suffix in suffixes} | {"checkpoint.pt", "log.csv"}
        model = bundled.load_files(folder / f"{name}.json")
        assert model.info.card["autoencoder"]["steps"] == 4
        (folder / f"{name}.json").unlink()
        command.run(name, str(folder), None, None, None, "cpu", only_export=True)
        assert bundled.load_files(folder / f"{name}.json").info.card["steps"] == 4
    with pytest.raises(ValueError, match=r"nothing to export in .*empty"):
        command.run("tiny-dit", str(tmp_path / "empty"), None, None, None, "cpu", only_export=True)
    assert Training(make_objective(AUTOENCODER, data), tmp_path / AUTOENCODER.name).step == 4
    weights = [bundled.load_files(tmp_path / name / f"{name}.json").autoencoder.state_dict() for name in recipes]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_words_left_out_leave_no_gap():
    tokens = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
    left_out = torch.tensor([[True, False, True, False], [False, True, False, False]])
    assert without(tokens, left_out).tolist() == [[6, 0, 0, 0], [8, 0, 0, 0]]


def test_latents_need_an_autoencoder(data):
    with pytest.raises(ValueError, match="tiny-dit is trained on latents and needs the autoencoder"):
        make_objective(CLASSES, data)


# ---- the bundled models, where the font is there ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji():
    try:
        find_font()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return load_emoji(64)


def nearest(model, data, candidates, samples):
    """Which of the candidates each sample is nearest to, in the space of the latents."""
    pixels = torch.from_numpy(data.images[candidates]).float().div(127.5).sub(1)
    known = torch.cat([model.encode(part) for part in pixels.split(64)])
    return [candidates[i] for i in torch.cdist(samples.flatten(1), known.flatten(1)).argmin(1).tolist()]


@pytest.mark.parametrize("name", ["emoji-ldm-64", "emoji-dit-64"])
def test_the_bundled_autoencoder_keeps_held_out_emoji(emoji, name):
    model, objective = fastdiff.load(name), Autoencoding(RECIPES["emoji-autoencoder-64"], emoji)
    psnr = objective.psnr(model.autoencoder)
    assert psnr >= 26
    assert model.info.card["autoencoder"]["psnr"] == pytest.approx(psnr, abs=0.05)
    assert model.encode(objective.pixels(objective.images[::40])).std() == pytest.approx(1, abs=0.05)


def test_a_prompt_draws_its_emoji(emoji):
    """Of 24 prompts at least half must draw what is nearer to the emoji of that name than to 250 others."""
    model = fastdiff.load("emoji-ldm-64")
    wanted = [[name.lower() for name in emoji.names].index(prompt) for prompt in EMOJI_PROMPTS]
    candidates = sorted({*wanted, *range(0, len(emoji.names), 14)})
    samples = fastdiff.sample(model, (24, *model.info.shape), steps=10, seed=0, guidance=3.0,
                              cond=model.info.condition(EMOJI_PROMPTS, 24),
                              uncond=model.info.condition(None, 24))  # fmt: skip
    found = nearest(model, emoji, candidates, samples)
    assert sum(a == b for a, b in zip(found, wanted)) >= 12


def test_a_class_draws_its_emoji(emoji):
    """The nearest emoji is of the class asked for in at least 40% of 45 samples, and in a ninth by chance."""
    model = fastdiff.load("emoji-dit-64")
    names = [name for name in model.info.classes for _ in range(5)]
    samples = fastdiff.sample(model, (45, *model.info.shape), steps=10, seed=0, guidance=2.0,
                              cond=model.info.condition(names, 45),
                              uncond=model.info.condition(None, 45))  # fmt: skip
    found = nearest(model, emoji, list(range(0, len(emoji.names), 7)), samples)
    assert sum(emoji.classes[emoji.labels[i]] == name for i, name in zip(found, names)) >= 18
