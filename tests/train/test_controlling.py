"""Training of a ControlNet beside a latent model: what is trained and what stays, exported, loaded again, sampled."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_training import PROMPTS, fresh_autoencoder, run, squares, stopped_and_resumed

import fastdiff
from fastdiff.cli import train as command
from fastdiff.cli.main import main
from fastdiff.errors import WeightsError
from fastdiff.models import bundled
from fastdiff.models.bundled.eight_bits import rounded, unpacked
from fastdiff.models.edges import canny
from fastdiff.train.emoji.controlling import EdgeControl
from fastdiff.train.emoji.export import describe, export
from fastdiff.train.emoji.objectives import make_objective
from fastdiff.train.emoji.recipes import ControlRecipe
from fastdiff.train.loop import Training

RECIPE = ControlRecipe(
    name="tiny-control", base="tiny-ldm", hint_widths=(8, 16, 16), size=16, steps=4, batch=4, warmup=2, ema_decay=0.5,
    class_dropout=0.3, precision="float32",
)  # fmt: skip


@pytest.fixture
def data():
    return squares()


@pytest.fixture
def folder(tmp_path, data, monkeypatch):
    """A folder with the exported base, in place of the package's."""
    training = run(make_objective(PROMPTS, data, fresh_autoencoder()), tmp_path / "base")
    with torch.no_grad():
        for p in training.ema.module.unet.parameters():  # so that no layer is at zero
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    export(training, tmp_path / "tiny-ldm", autoencoder={**describe(training), "psnr": 20.0})
    monkeypatch.setattr("fastdiff.models.bundled.loading.folder", lambda: tmp_path)
    return tmp_path


def objective_of(recipe, data):
    return make_objective(recipe, data, base=bundled.load("tiny-ldm"))


def test_a_resumed_run_is_the_same_and_trains_the_control_alone(folder, data):
    objective = objective_of(RECIPE, data)
    assert isinstance(objective, EdgeControl)
    fresh = {name: p.clone() for name, p in Training(objective, folder / "fresh").model.named_parameters()}
    whole = run(objective, folder / "whole", 4)
    resumed = stopped_and_resumed(objective, folder / "part")
    assert resumed.losses == whole.losses
    for (name, a), b in zip(whole.ema.module.named_parameters(), resumed.ema.module.parameters()):
        assert torch.equal(a, b)
        assert torch.equal(a, fresh[name]) == name.startswith("unet."), name


def test_it_begins_as_the_base_and_learns(folder, data):
    """At first the loss is that without the edges; then it falls below."""
    objective = objective_of(replace(RECIPE, steps=200, learning_rate=3e-3), data)
    training = Training(objective, folder / "run")
    training.folder.mkdir()
    generator = torch.Generator

    def loss(edges):
        with torch.no_grad():
            return float(objective._held_out_loss(training.ema.module, generator().manual_seed(0), edges))

    held_out = objective.edges[objective.held_out]
    before = loss(held_out)
    assert before == loss(None)
    training.run(on_step=lambda *_: None, on_validation=lambda _: None)
    assert loss(held_out) < 0.95 * before
    assert loss(None) == before
    assert objective.remarks(training.ema.module).startswith(f"without the edges {before:.4f}, edges found again ")


def test_mirrored_pictures_have_mirrored_edges(folder, data):
    objective = objective_of(RECIPE, data)
    images = objective.pixels(torch.from_numpy(data.images))
    assert objective.latents.shape == (2, 20, 4, 4, 4)
    assert torch.equal(objective.edges, canny(images) > 0)
    mirrored = bundled.load("tiny-ldm").encode(images.flip(-1))
    torch.testing.assert_close(objective.latents[1], mirrored, rtol=1e-4, atol=1e-4)


def test_export_loads_again(folder, data):
    training = run(objective_of(RECIPE, data), folder / "run")
    export(training, folder / "tiny-control")
    model = fastdiff.load("tiny-control")
    for a, b in zip(model.net.parameters(), rounded(training.ema.module.net).parameters()):
        assert torch.equal(a, b)
    base = fastdiff.load("tiny-ldm")
    for a, b in zip(model.base.parameters(), base.parameters()):
        assert torch.equal(a, b)
    own = unpacked(load_file(folder / "tiny-control.safetensors"))
    assert sum(value.numel() for value in own.values()) == model.info.card["own_parameters"]  # the base is not in it
    card = (folder / "tiny-control.md").read_text()
    assert "A ControlNet for tiny-ldm" in card
    assert "undefined" not in card.lower()
    edges = (torch.rand(1, 16, 16) > 0.9).float()
    plain, controlled = (model.info.condition("dark square 2", 2, image=image) for image in (None, edges))
    assert plain.keys() == {"context", "y"}
    assert torch.equal(controlled["edges"], edges.expand(2, 1, 16, 16))
    common = dict(steps=2, seed=0, guidance=2.0)
    shape = (2, *model.info.shape)
    nothing = model.info.condition(None, 2)
    without = fastdiff.sample(model, shape, cond=plain, uncond=nothing, **common)
    assert torch.equal(without, fastdiff.sample(base, shape, cond=plain, uncond=nothing, **common))
    nothing = model.info.condition(None, 2, image=edges)
    steered = fastdiff.sample(model, shape, cond=controlled, uncond=nothing, **common)
    assert not torch.allclose(steered, without, atol=1e-4)
    assert bundled.to_pictures(model, steered).shape == (2, 3, 16, 16)
    for wrong in (torch.zeros(3, 16, 16), torch.zeros(1, 8, 8)):
        with pytest.raises(ValueError, match=r"image must be edges, 1 on an edge, \(1, 16, 16\) in \[0, 1\], one or"):
            model.info.condition(None, 2, image=wrong)
    with pytest.raises(ValueError, match="image was given, but tiny-ldm is not conditioned on pictures"):
        base.info.condition(None, 2, image=edges)
    with pytest.raises(ValueError, match=r"hint must be \(2, 1, 16, 16\), 4 times x's size, got \(2, 3, 16, 16\)"):
        model(torch.zeros(shape), torch.zeros(2), **plain, edges=torch.zeros(2, 3, 16, 16))

    with pytest.raises(ValueError, match="is conditioned on a picture"):
        fastdiff.profiling.get_subject("tiny-control")


def test_a_base_that_is_another_or_missing_is_named(folder, data):
    export(run(objective_of(RECIPE, data), folder / "run"), folder / "tiny-control")
    alone = folder / "alone"
    alone.mkdir()
    for suffix in (".json", ".safetensors"):
        shutil.copy(folder / f"tiny-control{suffix}", alone)
    assert bundled.load_files(alone / "tiny-control.json").info.name == "tiny-control"  # the package's base
    about = json.loads((folder / "tiny-ldm.json").read_text())
    (alone / "tiny-ldm.json").write_text(json.dumps({**about, "sha256": "0" * 64}))
    with pytest.raises(WeightsError, match=r"tiny-control adds to tiny-ldm with SHA-256 .* describes 0000"):
        bundled.load_files(alone / "tiny-control.json")
    (alone / "tiny-ldm.json").unlink()
    (folder / "tiny-ldm.json").unlink()
    with pytest.raises(WeightsError, match="tiny-control adds to tiny-ldm, which is not in"):
        bundled.load_files(alone / "tiny-control.json")


def test_the_commands(folder, data, capsys, monkeypatch):
    """`train`, with pictures, and `sample` with edges, with a prompt and without."""
    monkeypatch.setattr(command, "RECIPES", {"tiny-control": RECIPE})
    monkeypatch.setattr(command, "load_emoji", lambda size, font: data)
    command.run("tiny-control", str(folder / "run"), None, None, None, "cpu")
    made = {path.name for path in (folder / "run").iterdir()}
    assert made >= {f"tiny-control{end}" for end in (".safetensors", ".json", ".md", ".png", "-loss.png")}
    for path in (folder / "run").glob("tiny-control.*"):
        shutil.copy(path, folder)
    monkeypatch.chdir(folder)
    lines = np.zeros((16, 16), np.uint8)
    lines[4, 2:14] = 255
    Image.fromarray(lines).save("edges.png")
    Image.fromarray(255 - lines).save("inverted.png")
    Image.fromarray(lines[:12]).save("flat.png")
    sample = ["sample", "--model", "tiny-control", "--count", "2", "--steps", "2", "--zoom", "1"]
    for number, more in enumerate(
        ([], ["--prompt", "dark square 2"], ["--prompt", "dark square 2", "--image", "edges.png"])
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*sample, *more, "--out", f"{number}.png"])
        assert stopped.value.code == 0, capsys.readouterr().err
        assert Image.open(f"{number}.png").size == (2 * 18 + 2, 20)
    assert Image.open("1.png").tobytes() != Image.open("2.png").tobytes()
    capsys.readouterr()
    for name, message in (
        ("inverted.png", "inverted.png is mostly white, expected white lines on black"),
        ("flat.png", "flat.png has 16x12 pixels, expected lines on 16x16"),
        ("nothing.png", "nothing.png: No such file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*sample, "--image", name, "--out", "none.png"])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (folder / "none.png").exists()


def test_a_control_needs_its_base(data):
    with pytest.raises(ValueError, match="tiny-control controls tiny-ldm and needs it as base"):
        make_objective(RECIPE, data)
