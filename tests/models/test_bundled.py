"""The bundled models: they load, they are what was published, they make pictures; broken files are refused."""

import json
import shutil

import pytest
import torch

import fastdiff
from fastdiff import WeightsError
from fastdiff.engine.direct import integrate
from fastdiff.models import bundled
from fastdiff.prediction import get_prediction


@pytest.mark.parametrize("name", bundled.names())
def test_bundled_model(name):
    model = fastdiff.load(name)
    info = model.info
    assert info.name == name
    assert info.card["parameters"] == sum(p.numel() for p in model.parameters())
    assert not model.training
    assert (bundled.folder() / f"{name}.safetensors").stat().st_size <= 12_000_000
    assert (bundled.folder() / f"{name}.md").read_text(encoding="utf-8").count("\n") > 10


def test_emoji_are_on_white_and_differ_by_class():
    model = fastdiff.load("emoji-unet-32")
    classes = ["smileys", "smileys", "flags", "flags"]
    samples = fastdiff.sample(model, (4, *model.info.shape), steps=12, seed=0, guidance=2.0,
                              cond=model.info.condition(classes, 4), uncond=model.info.condition(None, 4))  # fmt: skip
    assert samples.shape == (4, 3, 32, 32)
    # Every emoji of the data set leaves its corners white (1.0); a smiley is yellow in the middle: little blue.
    corners = samples[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float(corners.median()) > 0.9
    red, _, blue = samples[:2, :, 8:24, 8:24].mean((0, 2, 3)).tolist()
    assert red - blue > 0.5


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun"])
def test_the_engine_and_the_bare_step_functions_agree_on_a_real_network(solver):
    """float64, guided: the Program in C++ against the step function on tensors, which shares none of its machinery."""
    model = fastdiff.load("emoji-unet-32", dtype=torch.float64)
    info, method = model.info, fastdiff.solvers.get_solver(solver)
    times = fastdiff.grids.make_grid("logsnr", info.schedule, 8)
    x = fastdiff.noise.CounterNoise.of(0, 2).initial((2, *info.shape), torch.float64)
    common = dict(guidance=fastdiff.CFG(2.0), cond=info.condition("food", 2), uncond=info.condition(None, 2))
    ours = fastdiff.sample(model, x, solver=method, grid=times, **common)
    with torch.no_grad():
        bare = integrate(method, model, x, info.schedule, times, get_prediction(info.prediction), **common)
    # alpha(1) = 5e-5: where a formula divides by it, float64's 1e-16 becomes 1e-16 / alpha^2 = 1e-7 of the state.
    assert (ours - bare).abs().max() <= 1e-6 * bare.square().mean().sqrt()


def test_a_prompt_may_have_a_new_word():
    model = fastdiff.load("emoji-ldm-64")
    known, words = model.info.condition(["red heart", None], 2), model.info.tokenizer.words
    token = model.add_word("zork", like="heart")
    assert model.info.tokenizer.words == (*words, "zork")
    assert model.info.tokens("zork", 1)[0, 0] == token == len(words) + 1
    for name, value in model.info.condition(["red heart", None], 2).items():
        assert torch.equal(value, known[name])
    assert torch.equal(model.info.condition(["red zork", None], 2)["context"], known["context"])
    with torch.no_grad():
        model.text.tokens.weight[token] += 1
    assert not torch.equal(model.info.condition("red zork", 1)["context"], known["context"][:1])
    meaningless = model.add_word("zork2")
    assert torch.allclose(model.text.tokens.weight[meaningless], model.text.tokens.weight[1:meaningless].mean(0))


def test_new_words_that_are_refused():
    model = fastdiff.load("emoji-ldm-64")
    with pytest.raises(ValueError, match="the word 'heart' is known already"):
        model.add_word("heart")
    with pytest.raises(ValueError, match="unknown word 'hart'; did you mean"):
        model.add_word("zork", like="hart")
    with pytest.raises(ValueError, match="like must be one word, got 'red heart'"):
        model.add_word("zork", like="red heart")
    assert "zork" not in model.info.tokenizer.words
    del model.info
    with pytest.raises(ValueError, match="no tokenizer to add a word to"):
        model.add_word("zork")


def test_conditions_of_tokens_have_gradients():
    model = fastdiff.load("emoji-ldm-64")
    cond = model.info.condition(["red heart", None], 2)
    model.text.requires_grad_(True)
    context, y = model.info.text(model.info.tokens(["red heart", None], 2))
    assert torch.equal(context.detach(), cond["context"])
    assert torch.equal(y.detach(), cond["y"])
    (gradient,) = torch.autograd.grad(context.sum() + y.square().sum(), [model.text.tokens.weight])
    used = gradient.abs().sum(1).nonzero().flatten().tolist()
    assert used == sorted({0, *model.info.tokenizer.tokens("red heart")})


def test_networks_denoise_better_than_nothing():
    """On noised flags made here, the model's x0 is far closer to the flag than the noisy picture is."""
    model = fastdiff.load("emoji-unet-32")
    schedule, t = model.info.schedule, 0.5
    p = schedule.point(t)
    flag = torch.ones(1, 3, 32, 32)
    flag[:, :, 6:26, 1:31] = torch.tensor([[-0.8, 0.9, 0.8], [-0.3, 0.9, -0.8], [0.5, 0.9, -0.8]]).repeat_interleave(
        10, 1
    )[:, None]
    noise = fastdiff.noise.CounterNoise.of(0, 1).initial(flag.shape, torch.float32)
    x = p.alpha * flag + p.sigma * noise
    v = model(x, torch.tensor([schedule.model_time(t)]), torch.tensor([8]))
    x0 = p.alpha * x - p.sigma * v
    assert (x0 - flag).square().mean() < 0.1 * (x / p.alpha - flag).square().mean()


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown model 'emoji-unet-23'; did you mean 'emoji-unet-32'"):
        fastdiff.load("emoji-unet-23")
    with pytest.raises(ValueError, match="unknown class 'flag'; did you mean 'flags'"):
        fastdiff.load("emoji-unet-32").info.condition("flag", 1)


@pytest.fixture
def copy(tmp_path):
    for suffix in (".json", ".safetensors"):
        shutil.copy(bundled.folder() / f"emoji-unet-32{suffix}", tmp_path)
    return tmp_path / "emoji-unet-32.json"


def test_a_copy_loads(copy):
    a, b = bundled.load_files(copy).state_dict(), fastdiff.load("emoji-unet-32").state_dict()
    assert all(torch.equal(a[key], b[key]) for key in b)


def test_truncated_weights(copy):
    weights = copy.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"emoji-unet-32\.safetensors is not the file that was published"):
        bundled.load_files(copy)


def test_tampered_weights(copy):
    weights = copy.with_suffix(".safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match=r"emoji-unet-32\.safetensors is not the file that was published"):
        bundled.load_files(copy)


def test_missing_files(copy):
    copy.with_suffix(".safetensors").unlink()
    with pytest.raises(WeightsError, match=r"cannot read the weights .*emoji-unet-32\.safetensors"):
        bundled.load_files(copy)


def test_broken_descriptions(copy):
    about = json.loads(copy.read_text())
    copy.write_text(json.dumps({k: v for k, v in about.items() if k != "sha256"}))
    with pytest.raises(WeightsError, match=r"emoji-unet-32\.json lacks sha256"):
        bundled.load_files(copy)
    copy.write_text("{")
    with pytest.raises(WeightsError, match="cannot read the description"):
        bundled.load_files(copy)
