"""The denoising loss: its target is the prediction's, for every name, and training and sampling agree on it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.models import bundled
from fastdiff.models.unet import UNetConfig
from fastdiff.process.prediction import PREDICTIONS
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.export import export
from fastdiff.train.emoji.pixels import PixelDiffusion
from fastdiff.train.emoji.recipes import RECIPES, Diffusion, Recipe
from fastdiff.train.loop import Training
from fastdiff.train.losses import denoising_loss
from fastdiff.train.objective import Objective
from fastdiff.train.process import Process
from fastdiff.train.run import Run

TRAINED = [name for name, prediction in PREDICTIONS.items() if not prediction.split]
SCHEDULES = ("cosine", "linear", "vp-linear", "sub-vp", "ve", "rectified-flow")


def random_points(schedule, count=64):
    process = Process.of(schedule, "v")
    return process.points(count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_target_means_x0_and_eps(name, schedule):
    """x0 and eps in float64, made into the state and the target, and read from these as a solver does."""
    prediction = PREDICTIONS[name]
    x0, eps = 0.7, -1.3
    for p in random_points(schedule):
        a, b = prediction.target(p)
        x, out = p.alpha * x0 + p.sigma * eps, a * x0 + b * eps
        for wanted, (of_x, of_out) in ((x0, prediction.x0(p)), (eps, prediction.eps(p))):
            size = abs(of_x * x) + abs(of_out * out)  # the two may cancel
            assert of_x * x + of_out * out == pytest.approx(wanted, rel=0, abs=1e-14 * (1 + size)), (name, p)


def test_the_targets_of_the_papers():
    (p,) = random_points("cosine", 1)
    targets = {"eps": (0, 1), "x0": (1, 0), "v": (-p.sigma, p.alpha), "flow": (-1, 1), "score": (0, -1 / p.sigma)}
    for name, expected in targets.items():
        assert PREDICTIONS[name].target(p) == pytest.approx(expected, abs=1e-12), name


class Knows(nn.Module):
    """The perfect network of data that is always x0; how it must answer is read from where a solver finds x0."""

    def __init__(self, process, x0):
        super().__init__()
        self.process, self.x0 = process, x0
        grid = process.schedule.points(np.linspace(process.schedule.t_min, process.schedule.t_max, 1000))
        self.grid = grid if process.schedule.name != "rectified-flow" else grid[:-1]  # alpha = 0 at the end
        self.times = torch.tensor([process.prediction.time(process.schedule, p) for p in self.grid])

    def forward(self, x, t):
        points = [self.grid[int((self.times - time).abs().argmin())] for time in t]
        rows = []
        for row, p in zip(x, points):
            of_x, of_out = self.process.prediction.x0(p)
            rows.append((self.x0 - of_x * row / self.process.prediction.scale(p)) / of_out)
        return torch.stack(rows)


@pytest.mark.parametrize("name", TRAINED)
def test_what_samples_the_data_has_no_loss(name):
    """A network from which every solver gets the data exactly is what the loss asks for."""
    process, x0 = Process.of("linear", name), torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    network = Knows(process, x0)
    loss = denoising_loss(network, process, x0.expand(32, 2, 3), torch.Generator().manual_seed(0))
    assert loss.shape == (32,)
    other = denoising_loss(network, process, x0.expand(32, 2, 3) + 0.1, torch.Generator().manual_seed(0))
    assert loss.max() < 1e-6
    assert other.min() > 100 * loss.max()
    sample = fastdiff.sample(network, (4, 2, 3), schedule=process.schedule, prediction=name, steps=10, seed=0)
    torch.testing.assert_close(sample.double(), x0.expand(4, 2, 3), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": "eps+variance"}, "learns a variance, for which there is no loss"),
        ({"prediction": "epsilon"}, "unknown prediction 'epsilon'; did you mean 'eps'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"schedule": "edm"}, "'edm' has no uniform time"),
    ],
)
def test_what_cannot_be_trained_is_refused_as_a_recipe(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["emoji-unet-32"], **changes)


def test_the_bundled_recipes_train_v():
    recipes = [recipe for recipe in RECIPES.values() if isinstance(recipe, Diffusion)]
    assert {(recipe.schedule, recipe.prediction) for recipe in recipes} == {("cosine", "v")}


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_recipe_trains_and_exports_its_prediction(prediction, tmp_path):
    """The output of the trained network is nearest to the prediction that its recipe and its file name."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    images = (labels[:, None, None, None] * 235 + rng.integers(0, 20, (20, 3, 8, 8))).astype(np.uint8)
    data = EmojiData(images, labels, np.ones(20), np.arange(20) % 5 == 4, tuple("x" * 20), ("dark", "light"))
    network = UNetConfig(channels=(8, 16), blocks=1, attention_levels=(1,), num_classes=2, groups=4, head_channels=8)
    recipe = Recipe(name="tiny", network=network, size=8, steps=150, batch=8, warmup=2, precision="float32",
                    ema_decay=0.9, learning_rate=3e-3, prediction=prediction)  # fmt: skip
    training = Training(PixelDiffusion(recipe, data), tmp_path)
    training.run(on_step=lambda *_: None, on_validation=lambda _: None)
    export(training, tmp_path / "tiny")
    model = bundled.load_files(tmp_path / "tiny.json")
    assert model.info.prediction == prediction

    def loss(name):
        process = Process.of(model.info.schedule, name)
        x0 = training.objective.pixels(training.objective.images)
        y = training.objective.labels
        with torch.inference_mode():
            return float(denoising_loss(model, process, x0, torch.Generator().manual_seed(0), y=y).mean())

    losses = {name: loss(name) for name in ("eps", "x0", "v")}
    assert min(losses, key=losses.get) == prediction, losses


class Ring(Objective):
    """A circle in the plane, to be drawn by a small network: data that are no pictures."""

    def __init__(self, recipe):
        super().__init__(recipe, "ring")
        self.process = Process.of("rectified-flow", "flow")

    def make_network(self):
        return Small()

    def loss(self, network, generator):
        angle = 2 * torch.pi * torch.rand(self.recipe.batch, generator=generator)
        points = torch.stack([angle.cos(), angle.sin()], 1)
        return denoising_loss(self.in_precision(network), self.process, points, generator).mean()

    validation_loss = loss


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))


def test_the_loop_trains_on_any_data(tmp_path):
    objective = Ring(Run(name="ring", steps=600, batch=256, learning_rate=4e-3, warmup=10, ema_decay=0.9,
                         precision="float32"))  # fmt: skip
    training = Training(objective, tmp_path)
    training.run(on_step=lambda *_: None, on_validation=lambda _: None)
    x = fastdiff.sample(training.ema.module, (200, 2), schedule="rectified-flow", prediction="flow", steps=20, seed=0)
    radius = x.norm(dim=1)
    assert radius.mean() == pytest.approx(1, abs=0.1)
    assert radius.std() < 0.45  # of noise it is 0.65
    assert x.mean(0).norm() < 0.2  # all around
