"""Students: they begin as their teacher, which stays as it is, learn from it, go on after a stop, and ship."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import stopped

import fastdiff
from fastdiff.cli import train as command
from fastdiff.models import bundled
from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL
from fastdiff.models.bundled.conditioned import ClassLatentDiffusion
from fastdiff.models.dit import DiTConfig
from fastdiff.models.info import ModelInfo
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.process.schedules import SCHEDULES
from fastdiff.train.emoji import objectives
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.export import export
from fastdiff.train.emoji.objectives import make_objective
from fastdiff.train.emoji.recipes import (
    AutoencoderRecipe,
    ConsistencyRecipe,
    LatentProgressiveRecipe,
    ProgressiveRecipe,
)
from fastdiff.train.loop import Training

COMMON = dict(steps=4, batch=4, warmup=2, ema_decay=0.5, precision="float32")
PIXELS = ProgressiveRecipe(
    name="tiny-pixels-4", teacher="tiny", guidance=2.0, student_steps=4, size=8, **COMMON,
    network=UNetConfig(channels=(8, 16), blocks=1, attention_levels=(1,), num_classes=2, groups=4, head_channels=8),
)  # fmt: skip
CONSISTENCY = ConsistencyRecipe(**{**vars(PIXELS), "name": "tiny-consistency", "teacher": PIXELS, "levels": 4})
CONSISTENCY = replace(CONSISTENCY, student_steps=2)
AUTOENCODER = AutoencoderRecipe(
    name="tiny-autoencoder", size=16, **COMMON,
    network=AutoencoderConfig(ch=8, out_ch=3, in_channels=3, z_channels=4, num_res_blocks=1, resolution=16,
                              ch_mult=(1,), norm_groups=4, mid_attention=False, patch=4),
)  # fmt: skip
EIGHT = LatentProgressiveRecipe(
    name="tiny-progressive-8", teacher="tiny", guidance=3.0, student_steps=8, autoencoder=AUTOENCODER, size=16,
    **COMMON,
    network=DiTConfig(input_size=4, hidden_size=16, depth=2, num_heads=2, num_classes=2, learn_sigma=False),
)  # fmt: skip
FOUR = replace(EIGHT, name="tiny-progressive", teacher=EIGHT, student_steps=4)


def info(model, shape):
    card = {"autoencoder": {"psnr": 20.0}}
    return ModelInfo("tiny", shape, SCHEDULES["cosine"](), "v", ("dark", "light"), card, layer=next(model.children()))


def network(recipe):
    """With random weights everywhere: those that begin at zero would make every student right."""
    torch.manual_seed(1)
    if recipe.size == 8:
        model = UNet(recipe.network)
        model.info = info(model, (3, 8, 8))
    else:
        model = ClassLatentDiffusion(recipe.network, AUTOENCODER.network, 0.7)
        model.autoencoder = AutoencoderKL(AUTOENCODER.network)
        model.info = info(model, (4, 4, 4))
    for p in model.parameters():
        if (p == 0).all():
            p.data.normal_(0, 0.02)
    return model.half().float().eval().requires_grad_(False)


@pytest.fixture
def data():
    def of(size):
        rng = np.random.default_rng(0)
        labels = np.arange(20) % 2
        images = (labels[:, None, None, None] * 200 + rng.integers(0, 50, (20, 3, size, size))).astype(np.uint8)
        return EmojiData(images, labels, np.ones(20), np.arange(20) % 5 == 4, tuple("x" * 20), ("dark", "light"))

    return of


@pytest.fixture(autouse=True)
def teachers(monkeypatch):
    """What the recipes name as the bundled teacher "tiny"."""
    found = {8: network(PIXELS), 16: network(EIGHT)}

    def load(recipe):
        monkeypatch.setattr(objectives.bundled, "load", lambda name: found[recipe.size])
        monkeypatch.setattr(command.fastdiff, "load", lambda name: found[recipe.size])
        return found[recipe.size]

    return load


def objective_of(recipe, data, teachers):
    teacher = teachers(recipe)
    return make_objective(recipe, data(recipe.size), teacher=None if isinstance(recipe.teacher, str) else teacher)


def run(objective, folder):
    folder.mkdir(exist_ok=True)
    training = Training(objective, folder)
    training.run(on_step=lambda *_: None, on_validation=lambda _: None)
    return training


RECIPES = pytest.mark.parametrize("recipe", [PIXELS, CONSISTENCY, EIGHT, FOUR], ids=lambda recipe: recipe.name)


@RECIPES
def test_a_student_begins_as_its_teacher_which_stays_as_it_is(tmp_path, data, teachers, recipe):
    objective = objective_of(recipe, data, teachers)
    before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    student = Training(objective, tmp_path / "x").model
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name
    trained = run(objective, tmp_path).model
    assert all(torch.equal(value, before[name]) for name, value in objective.teacher.state_dict().items())
    same = [name for name, p in trained.named_parameters() if torch.equal(p, before[name])]
    assert all(name.startswith("autoencoder.") for name in same)
    assert all(p.grad is None for p in objective.teacher.parameters())


@RECIPES
def test_a_resumed_run_is_the_same(tmp_path, data, teachers, recipe):
    objective = objective_of(recipe, data, teachers)
    whole = run(objective, tmp_path / "whole")
    stopped(objective, tmp_path / "part")
    resumed = run(objective_of(recipe, data, teachers), tmp_path / "part")
    assert resumed.losses == whole.losses
    for a, b in zip(whole.ema.module.parameters(), resumed.ema.module.parameters()):
        assert torch.equal(a, b)


@RECIPES
def test_a_student_learns_the_end_of_its_teachers_trajectory(tmp_path, data, teachers, recipe):
    """In fewer steps than it begins with as a copy of the teacher, it comes closer to what the teacher's steps give."""
    objective = objective_of(replace(recipe, steps=150, learning_rate=3e-3, batch=16), data, teachers)
    own, shape = objective.recipe.sampling, objective.teacher.info.shape
    y = torch.arange(24) % 2
    common = dict(schedule="cosine", prediction="v", seed=0, cond={"y": y}, solver="ddim", grid="trailing")
    steps, of_teacher = (1, 4) if recipe is CONSISTENCY else (own.steps, 2 * own.steps)
    guidance = (
        {}
        if not isinstance(recipe.teacher, str)
        else {"guidance": recipe.guidance, "uncond": {"y": torch.full((24,), 2)}}
    )
    wanted = fastdiff.sample(objective.teacher, (24, *shape), steps=of_teacher, **guidance, **common)

    def error(network):
        found = fastdiff.sample(network, (24, *shape), steps=steps, **common)
        return float((found - wanted).square().mean().sqrt())

    before = error(objective.make_network())
    assert error(run(objective, tmp_path).ema.module) < 0.6 * before


def test_another_teacher_is_refused(tmp_path, data, teachers):
    objective = objective_of(CONSISTENCY, data, teachers)
    run(objective, tmp_path)
    with torch.no_grad():
        next(objective.teacher.parameters()).add_(1)
    with pytest.raises(ValueError, match="made with another data"):
        Training(objective_of(CONSISTENCY, data, teachers), tmp_path)


def test_a_run_from_before_a_setting_was_there_goes_on(tmp_path, data, teachers):
    """Of the run, and of its teacher's recipe in it."""
    training = run(objective_of(FOUR, data, teachers), tmp_path)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=False)
    del state["recipe"]["accumulate"], state["recipe"]["teacher"]["accumulate"]
    torch.save(state, path)
    assert Training(objective_of(FOUR, data, teachers), tmp_path).step == training.step
    state["recipe"]["teacher"]["batch"] += 1
    torch.save(state, path)
    with pytest.raises(ValueError, match="made with another recipe: teacher"):
        Training(objective_of(FOUR, data, teachers), tmp_path)


def test_a_student_of_a_student_needs_it(data, teachers):
    teachers(FOUR)
    with pytest.raises(ValueError, match="tiny-progressive learns from tiny-progressive-8 and needs its network"):
        make_objective(FOUR, data(16))


def test_the_guidance_is_distilled_once(data, teachers):
    """The first student's teacher is guided; the next one's has the guidance in its weights."""
    x, t, y = torch.randn(3, 4, 4, 4), torch.full((3,), 500.0), torch.tensor([0, 1, 2])
    first, second = (objective_of(recipe, data, teachers) for recipe in (EIGHT, FOUR))
    plain = first.teacher(x, t, y=y)
    none = first.teacher(x, t, y=torch.full((3,), 2))
    assert torch.allclose(first.guided(x, t, y=y), none + 3 * (plain - none), atol=1e-4)
    assert torch.allclose(second.guided(x, t, y=y), plain, atol=1e-5)
    assert not torch.allclose(first.guided(x, t, y=y)[:2], plain[:2], atol=1e-3)


@pytest.mark.parametrize("recipe", [CONSISTENCY, EIGHT], ids=lambda recipe: recipe.name)
def test_what_ships_samples_by_itself(tmp_path, data, teachers, recipe):
    objective = objective_of(recipe, data, teachers)
    training = run(objective, tmp_path)
    comparison = [
        {
            "network": network, "solver": "ddim", "steps": 2, "evaluations": 2.0, "samples": 8, "rmse": rmse,
            **{name: {"value": 1.0, "low": 0.5, "high": 1.5} for name in ("frechet", "kid", "precision", "recall")},
        }
        for network, rmse in (("teacher", 0.1), ("student", None))
    ]  # fmt: skip
    facts = {"autoencoder": {"psnr": 20.0}} if recipe is EIGHT else {}
    export(training, tmp_path / recipe.name, comparison=comparison, **facts)
    card = (tmp_path / f"{recipe.name}.md").read_text()
    assert "undefined" not in card.lower()
    assert "| student | ddim, 2 | 2 | 1.00 (0.50 to 1.50) |" in card
    assert max(map(len, card.splitlines()[:5])) <= 120
    model = bundled.load_files(tmp_path / f"{recipe.name}.json")
    own = recipe.sampling
    assert model.info.sampling == own
    options = dict(seed=3, cond=model.info.condition("dark", 2))
    a = fastdiff.sample(model, (2, *model.info.shape), **options)
    b = fastdiff.sample(model, (2, *model.info.shape), solver=own.solver, steps=own.steps, grid=own.grid, **options)
    assert torch.equal(a, b)
    other = fastdiff.sample(model, (2, *model.info.shape), solver="dpmpp-2m", **options)
    plain = fastdiff.sample(model, (2, *model.info.shape), solver="dpmpp-2m", steps=20, grid="logsnr", **options)
    assert torch.equal(other, plain)  # another solver has its own grid


@RECIPES
def test_pictures_and_distances_side_by_side(data, teachers, recipe):
    objective = objective_of(recipe, data, teachers)
    pictures, columns = objective.pictures(objective.make_network())
    assert (len(pictures), columns) == (2 * 12, 12)
    own = objective.recipe.sampling
    assert own.steps in (own.other_steps[0] // 2, 2)


def test_the_command_trains_the_students_one_after_another(tmp_path, data, teachers, monkeypatch):
    teachers(FOUR)
    monkeypatch.setattr(command, "RECIPES", {recipe.name: recipe for recipe in (EIGHT, FOUR)})
    monkeypatch.setattr(command, "load_emoji", lambda size, font: data(size))
    monkeypatch.setattr("fastdiff.train.emoji.comparison.SAMPLES", 8)
    command.run(FOUR.name, str(tmp_path / FOUR.name), None, None, None, "cpu")
    model = bundled.load_files(tmp_path / FOUR.name / f"{FOUR.name}.json")
    assert model.info.card["recipe"]["stages"] == [[8, 4], [4, 4]]
    assert [row["network"] for row in model.info.card["comparison"]] == ["teacher", "student", "student"]
    teacher = bundled.load_files(tmp_path / EIGHT.name / f"{EIGHT.name}.json")
    assert (teacher.info.sampling.steps, teacher.info.card["comparison"]) == (8, [])  # no time is spent on it
    (tmp_path / FOUR.name / f"{FOUR.name}.json").unlink()
    command.run(FOUR.name, str(tmp_path / FOUR.name), None, None, None, "cpu", only_export=True)
    assert bundled.load_files(tmp_path / FOUR.name / f"{FOUR.name}.json").info.card["steps"] == 4
