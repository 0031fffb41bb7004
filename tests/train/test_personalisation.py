"""The examples that teach emoji-ldm-64 something new: what they train, what they leave alone, what comes out."""

from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest
import torch

import fastdiff
from fastdiff import pictures

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    """The functions of an example, which is not run."""
    return SimpleNamespace(**run_path(str(EXAMPLES / f"{name}.py")))


def latents_of(made, model, folder):
    made.draw(folder)
    drawn = [pictures.load_square(path, 64) for path in sorted(folder.iterdir())]
    assert len(drawn) == 4
    with torch.no_grad():
        return model.encode(torch.stack(drawn))


def test_textual_inversion_changes_one_embedding(tmp_path):
    made, model = example("textual_inversion"), fastdiff.load("emoji-ldm-64")
    original = {name: value.clone() for name, value in model.state_dict().items()}
    z = latents_of(made, model, tmp_path)
    v = made.learn(model, z, "face", steps=8, batch=4, lr=0.1)
    assert made.fixed_loss(model, z, made.WORD) < 0.95 * made.fixed_loss(model, z, "face")
    learned = dict(model.state_dict())
    table = learned.pop("text.tokens.weight")
    assert torch.equal(table[:-1], original.pop("text.tokens.weight"))
    assert torch.equal(table[-1], v)
    for name, value in learned.items():
        assert torch.equal(value, original[name]), name


def test_dreambooth_keeps_what_it_knew_better_with_preservation(tmp_path):
    made = example("dreambooth")
    lost, learned = {}, {}
    for prior in (0.0, 1.0):
        model = fastdiff.load("emoji-ldm-64")
        z = latents_of(made, model, tmp_path)
        model.add_word(made.WORD)
        known = made.sample(model, ["heart"] * 4, seed=7)
        before, start = made.fixed_loss(model, known, "heart"), made.fixed_loss(model, z, "zork heart")
        made.learn(model, z, "zork heart", "heart", steps=8, prior=prior, batch=2, lr=1e-3, own=4)
        lost[prior] = made.fixed_loss(model, known, "heart") - before
        learned[prior] = start - made.fixed_loss(model, z, "zork heart")
    assert learned[0.0] > 0.05
    assert learned[1.0] > 0.05
    assert lost[1.0] < 0.8 * lost[0.0]


def test_lora_is_trained_alone_and_merges_under_optimize(tmp_path):
    peft = pytest.importorskip("peft", reason="what lora.py is about")
    made, model = example("lora"), fastdiff.load("emoji-ldm-64")
    given = made.printed(made.sample(model, made.PROMPTS[:2]))
    red, green, blue = given.mean((0, 2, 3)).tolist()
    assert blue > green > red
    with torch.no_grad():
        z = model.encode(given)
    made.add_lora(model, rank=4)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    before = made.fixed_loss(model, z, made.PROMPTS[:2])
    made.learn(model, z, made.PROMPTS[:2], steps=8, batch=4, lr=5e-3)
    assert made.fixed_loss(model, z, made.PROMPTS[:2]) < 0.9 * before
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, original[name])}
    assert changed
    assert all(".lora_" in name for name in changed)

    model.unet.save_pretrained(tmp_path)
    other = fastdiff.load("emoji-ldm-64")
    t, cond = torch.tensor([300.0, 700.0]), model.info.condition(["cat face", None], 2)
    with_lora = model(z, t, **cond)
    assert (with_lora - other(z, t, **cond)).abs().mean() > 0.02
    other.unet = peft.PeftModel.from_pretrained(other.unet, tmp_path)
    assert torch.allclose(other(z, t, **cond), with_lora, atol=1e-4)

    model.unet = model.unet.merge_and_unload()
    assert not any(".lora_" in name for name in model.state_dict())
    with torch.no_grad():
        for each in (model, other):
            assert torch.allclose(fastdiff.optimize(each)(z, t, **cond), with_lora, atol=1e-4)
