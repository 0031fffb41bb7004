"""`fastdiff edit`: pictures in, pictures out, each command against the functions that it stands for."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff import editing, pictures
from fastdiff.cli.main import main
from fastdiff.cli.picture_model import of_bundled
from fastdiff.editing.operators import AveragePooling, Blurring, gaussian_kernel
from fastdiff.models.bundled.controlled import EdgeLatentDiffusion
from fastdiff.models.controlnet import ControlNet, ControlNetConfig


def run(*arguments):
    """The exit status of a command in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(each) for each in arguments])
    return left.value.code or 0


def edit(capfd, *arguments):
    """What --json says of an edit that went well."""
    status = run("edit", *arguments, "--json")
    said = capfd.readouterr()
    assert status == 0, said.err
    return json.loads(said.out), said.err


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def save_picture(path, size=32, **options):
    """Smooth, so that resizing leaves it alike."""
    y, x = np.mgrid[:size, :size] / (size - 1)
    Image.fromarray((255 * np.stack([x, y, 1 - x], -1)).astype(np.uint8)).save(path, **options)


def save_mask(path, size=32, hole=(slice(10, 20), slice(12, 24))):
    """(size, size) boolean, True where it is white."""
    kept = np.ones((size, size), bool)
    kept[hole] = False
    Image.fromarray(kept).save(path)
    return kept


@pytest.fixture
def unet():
    return fastdiff.load("emoji-unet-32")


def given(model, name, count=1):
    return {"cond": model.info.condition(name, count), "uncond": model.info.condition(None, count), "guidance": 2.0}


def test_inpaint(unet, capfd):
    """Files, strip, and the numbers of `editing.inpaint`; what is white in the mask keeps its bits."""
    save_picture("a.png")
    kept = save_mask("mask.png")
    options = ["--class", "food", "--method", "replacement", "--solver", "ddim", "--steps", 3, "--seed", 4]
    facts, _ = edit(capfd, "inpaint", "--image", "a.png", "--mask", "mask.png", *options, "--count", 2,
                    "--out", "new/b.png", "--zoom", 2)  # fmt: skip
    assert (facts["files"], facts["strip"]) == (["new/b-1.png", "new/b-2.png"], "new/b-strip.png")
    assert sorted(path.name for path in Path("new").iterdir()) == ["b-1.png", "b-2.png", "b-strip.png"]
    expected = editing.inpaint(
        unet, pictures.load_square("a.png", 32).expand(2, -1, -1, -1), torch.from_numpy(kept).float(), steps=3,
        method="replacement", solver="ddim", seed=4, **given(unet, "food", 2),
    )  # fmt: skip
    for name, each in zip(facts["files"], pictures.to_uint8(expected)):
        assert np.abs(pixels(name) - each).max() <= 1
        assert np.array_equal(pixels(name)[kept], pixels("a.png")[kept])
        assert np.abs(pixels(name) - pixels("a.png"))[~kept].mean() > 3
    strip = pixels("new/b-strip.png")
    assert strip.shape == (2 * 36, 2 * (4 * 34 + 2), 3)
    shown = [strip[4 : 4 + 64 : 2, 4 + 68 * k : 68 + 68 * k : 2] for k in range(4)]
    wanted = [pixels("a.png"), 255 * kept[..., None].repeat(3, -1), pixels("new/b-1.png"), pixels("new/b-2.png")]
    assert all(np.array_equal(one, other) for one, other in zip(shown, wanted))


def test_a_photo_is_cut_and_resized_with_its_mask(capfd):
    """A mark of one pixel in the mask is not lost; --hole turns the colours round."""
    save_picture("a.jpg", 90)
    Image.open("a.jpg").crop((0, 0, 64, 90)).save("a.jpg", quality=95)
    mask = np.zeros((90, 64), np.uint8)
    mask[40, 40] = 255
    Image.fromarray(mask).save("mask.png")
    options = ["--method", "replacement", "--steps", 1, "--hole", "white"]
    _, said = edit(capfd, "inpaint", "--image", "a.jpg", "--mask", "mask.png", *options)
    assert "a.jpg: 64 x 90 pixels, of which the middle 64 x 64 are resized to 32 x 32" in " ".join(said.split())
    changed = (pixels("edited.png") != pictures.to_uint8(pictures.load_square("a.jpg", 32)[None])[0]).any(-1)
    assert np.argwhere(changed).tolist() == [[13, 20]]
    assert run("edit", "inpaint", "--image", "a.jpg", "--mask", "mask.png", *options, "--out", "x.png") == 0
    assert run("edit", "inpaint", "--image", "a.jpg", "--mask", "mask.png", *options) == 2  # a file is not replaced
    assert "edited.png is there already; --overwrite replaces it" in capfd.readouterr().err
    assert run("edit", "inpaint", "--image", "a.jpg", "--mask", "mask.png", *options, "--overwrite") == 0


def test_inpaint_latents(capfd):
    """Also where the autoencoder changes all pixels, those that are kept have the picture's bits."""
    save_picture("a.png", 64)
    kept = save_mask("mask.png", 64)
    options = ["--model", "emoji-ldm-64", "--prompt", "red heart", "--jumps", "1:2", "--steps", 3]
    facts, _ = edit(capfd, "inpaint", "--image", "a.png", "--mask", "mask.png", *options, "--dtype", "bfloat16")
    assert (facts["prompt"], facts["dtype"]) == ("red heart", "bfloat16")
    assert np.array_equal(pixels("edited.png")[kept], pixels("a.png")[kept])
    assert np.abs(pixels("edited.png") - pixels("a.png"))[~kept].mean() > 3


@pytest.mark.parametrize("method", ["glide", "mcg"])
def test_every_method_keeps_the_bits(method, capfd):
    """Also one that alone does not (glide), and one that is no solver (mcg)."""
    save_picture("a.png")
    kept = save_mask("mask.png")
    edit(capfd, "inpaint", "--image", "a.png", "--mask", "mask.png", "--method", method, "--steps", 2)
    assert np.array_equal(pixels("edited.png")[kept], pixels("a.png")[kept])
    assert np.abs(pixels("edited.png") - pixels("a.png"))[~kept].mean() > 3


def test_a_variation_is_what_sample_makes_of_a_picture(capfd):
    save_picture("a.png", 50)
    options = ["--image", "a.png", "--strength", 0.4, "--class", "food", "--count", 3, "--steps", 6, "--seed", 2]
    facts, said = edit(capfd, "variation", *options, "--batch", 2)
    assert run("sample", *options, "--batch", 2, "--zoom", 1) == 0
    sheet = pixels("grid.png")
    for k, name in enumerate(facts["files"]):
        assert np.array_equal(pixels(name), sheet[2:34, 2 + 34 * k : 34 + 34 * k])
    assert facts["strength"] == 0.4
    assert "before and after in edited-strip.png" in said


def test_restore(unet, capfd):
    """The result explains what was measured better than a sample that does not look at it."""
    picture = fastdiff.sample(unet, (1, 3, 32, 32), steps=6, seed=5, **given(unet, "smileys")).clamp(-1, 1)
    shrink, smear = AveragePooling(4), Blurring(gaussian_kernel(7, 1.0).float())
    save_mask("mask.png")
    pictures.save_png("full.png", pictures.to_uint8(picture)[0])
    for task, operator, options in (
        ("superres", shrink, ["--factor", 4]),
        ("deblur", smear, ["--blur", 1.0]),
        ("inpaint", lambda x: x, ["--mask", "mask.png"]),
    ):
        y = operator(picture)
        pictures.save_png("y.png", pictures.to_uint8(y)[0])
        common = ["--task", task, *options, "--image", "y.png", "--class", "smileys", "--steps", 10, "--overwrite"]
        far = {}
        for scale in (1e-9, 2.0):
            facts, said = edit(capfd, "restore", *common, "--scale", scale)
            far[scale] = float((operator(pictures.load_square("edited.png", 32)[None]) - y).norm())
            assert "resized" not in said
        if task != "inpaint":  # where all that is known is put back
            assert far[2.0] < 0.85 * far[1e-9], task
        assert facts["task"] == task
    kept = ~(pixels("edited-strip.png")[8:136:4, 144:272:4] == 0).all(-1)
    assert np.array_equal(pixels("edited.png")[kept], pixels("full.png")[kept])
    assert 0 < (~kept).sum() == 120


def test_decoders_have_gradients_beyond_white():
    """Also that of a model with a ControlNet. What is shown is bounded."""
    base = fastdiff.load("emoji-ldm-64")
    config = ControlNetConfig(**asdict(base.unet.config), hint_channels=1, hint_widths=(16, 32, 64))
    with_edges = EdgeLatentDiffusion(base, ControlNet(config))
    with_edges.info = base.info
    z = 3 * torch.randn(1, *base.info.shape, generator=torch.Generator().manual_seed(0))
    for network in (base, with_edges):
        model = of_bundled(network, ["red heart"], None)
        leaf = z.clone().requires_grad_()
        picture = model.decode(leaf)
        (gradient,) = torch.autograd.grad(picture[picture > 1].sum(), leaf)
        assert gradient.abs().max() > 0
        assert torch.equal(model.pictures(z), base.decode(z))
        assert model.pictures(z).max() == 1


def test_restore_of_latents(capfd):
    """The gradient comes through the decoder, and the result explains the small picture better than without it."""
    model, shrink = fastdiff.load("emoji-ldm-64"), AveragePooling(4)
    heart = {"cond": model.info.condition("red heart", 1), "uncond": model.info.condition(None, 1), "guidance": 2.0}
    measured = shrink(model.decode(fastdiff.sample(model, (1, *model.info.shape), steps=6, seed=5, **heart)))
    pictures.save_png("a.png", pictures.to_uint8(measured)[0])
    common = ["--model", "emoji-ldm-64", "--task", "superres", "--image", "a.png", "--steps", 6, "--overwrite"]
    far = {}
    for scale in (1e-9, 4.0):
        edit(capfd, "restore", *common, "--scale", scale)
        far[scale] = float((shrink(pictures.load_square("edited.png", 64)[None]) - measured).norm())
    assert far[4.0] < 0.8 * far[1e-9]


def test_prompt(capfd):
    """From one seed: the strip shows the sample of the source, and the edit is that of `prompt_to_prompt`."""
    model = fastdiff.load("emoji-ldm-64")
    options = ["--source", "red heart", "--prompt", "blue heart", "--seed", 3, "--steps", 6, "--guidance", 3]
    facts, _ = edit(capfd, "prompt", *options, "--zoom", 1)
    assert facts["files"] == ["edited.png"]
    prompts = ["red heart", "blue heart"]
    change = editing.prompt_edit(
        prompts, steps=6, length=model.info.tokenizer.length, tokenizer=model.info.tokenizer, edit="replace", cross=0.8
    )
    x = editing.prompt_to_prompt(
        model, (1, *model.info.shape), change, cond=model.info.condition(prompts, 2), seed=3, guidance=3.0,
        uncond=model.info.condition(None, 2),
    )  # fmt: skip
    before, after = pictures.to_uint8(model.decode(x)).astype(int)
    assert np.abs(pixels("edited.png") - after).max() <= 1
    assert np.abs(pixels("edited-strip.png")[2:66, 2:66] - before).max() <= 1
    # kept to where the words are
    facts, said = edit(capfd, "prompt", *options, "--blend", "heart", "--blend-threshold", 0.9, "--overwrite")
    assert "before, mask and after" in said
    mask = pixels("edited-strip.png")[8:264:4, 272:528:4, 0]
    assert set(np.unique(mask)) == {0, 255}


def test_prompt_of_a_picture(capfd):
    """With the same words and no weight on them the picture comes back, up to the autoencoder."""
    model = fastdiff.load("emoji-ldm-64")
    heart = {"cond": model.info.condition("red heart", 1), "uncond": model.info.condition(None, 1), "guidance": 3.0}
    z = fastdiff.sample(model, (1, *model.info.shape), steps=8, seed=5, **heart)
    pictures.save_png("heart.png", pictures.to_uint8(model.decode(z))[0])
    options = ["--source", "red heart", "--image", "heart.png", "--steps", 12, "--guidance", 2, "--overwrite"]
    changes = []
    for more in (["--weight", "red=1"], ["--prompt", "blue heart", "--null-steps", 3]):
        edit(capfd, "prompt", *options, *more)
        changes.append(np.abs(pixels("edited.png") - pixels("heart.png")).mean())
    assert changes[0] < 0.5 * changes[1]
    assert changes[1] > 20


def test_diffedit(capfd):
    """A drawn mask keeps the rest to the bit; one that is found keeps what the model samples, here pixels."""
    save_picture("a.png")
    kept = save_mask("mask.png")
    common = ["--model", "emoji-unet-32", "--image", "a.png", "--class", "food", "--steps", 4, "--overwrite"]
    edit(capfd, "diffedit", *common, "--mask", "mask.png")
    assert np.array_equal(pixels("edited.png")[kept], pixels("a.png")[kept])
    assert (pixels("edited.png") != pixels("a.png"))[~kept].any(-1).mean() > 0.9
    facts, _ = edit(capfd, "diffedit", *common, "--source", "animals")
    shown = pixels("edited-strip.png")[8:136:4, 144:272:4, 0] == 255
    assert 0 < shown.sum() < shown.size
    assert np.array_equal(pixels("edited.png")[shown], pixels("a.png")[shown])
    assert facts["source"] == "animals"


@pytest.fixture
def folders():
    """Two of diffusers with random weights: pixels without a condition, and latents with prompts."""
    diffusers = pytest.importorskip("diffusers", reason="belongs to the diffusers extra")
    pytest.importorskip("transformers")
    from integrations.small_parts import vae
    from integrations.test_text_encoders import stable_diffusion

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained("pixels")
    pipeline = stable_diffusion()
    pipeline.register_modules(vae=vae())
    pipeline.save_pretrained("latents")
    return ["pixels", "latents"]


def test_diffusers_folders(folders, capfd):
    for folder, size, words in zip(folders, (8, 32), ([], ["--prompt", "a red apple"])):
        save_picture("a.png", size)
        kept = save_mask("mask.png", size, (slice(2, 5), slice(2, 7)))
        common = ["--model", folder, "--image", "a.png", "--steps", 2, "--overwrite", *words]
        facts, said = edit(capfd, "inpaint", *common, "--mask", "mask.png", "--method", "replacement")
        assert "resized" not in said
        assert np.array_equal(pixels("edited.png")[kept], pixels("a.png")[kept])
        assert (pixels("edited.png") != pixels("a.png"))[~kept].any()
        assert facts["guidance"] == (7.5 if words else 1.0)
        edit(capfd, "variation", *common, "--strength", 0.5)
        assert pixels("edited.png").shape == (size, size, 3)
    # what a folder cannot
    for arguments, message in (
        (["diffedit", "--model", "pixels", "--prompt", "a red apple"], "pixels takes no prompts"),
        (["inpaint", "--model", "pixels", "--mask", "mask.png", "--prompt", "a"], "pixels takes no prompts"),
        (["prompt", "--model", "pixels", "--source", "a", "--prompt", "red"], "pixels takes no prompts"),
        (["prompt", "--model", "latents", "--source", "a", "--prompt", "a"], "so that nothing would change"),
        (
            ["prompt", "--model", "latents", "--source", "a pear", "--prompt", "a", "--mode", "replace"],
            "cannot be aligned word by word",
        ),
        (
            ["variation", "--model", "latents", "--class", "food"],
            "--class is for bundled models and those that fastdiff train wrote",
        ),
    ):
        assert run("edit", *arguments, "--image", "a.png", "--out", "none.png") == 2
        error = capfd.readouterr().err
        assert message in error.splitlines()[-1]  # before it, diffusers shows that it loads
    # of latents, DiffEdit with drawn masks, and what was measured of the picture
    words = ["--model", "latents", "--source", "a red apple", "--prompt", "a green apple", "--overwrite"]
    for more in (["--blend", "apple", "--steps", 3], ["--image", "a.png", "--null-steps", 1, "--steps", 2]):
        facts, said = edit(capfd, "prompt", *words, *more)
        strip = pixels("edited-strip.png")
        assert (strip[8:136, 8:136] != strip[8:136, -136:-8]).any()
        assert (facts["mode"], "mask" in said) == (None, more[0] == "--blend")
    edit(capfd, "restore", *common, "--task", "inpaint", "--mask", "mask.png", "--scale", 0.5)
    assert np.array_equal(pixels("edited.png")[kept], pixels("a.png")[kept])
    edit(capfd, "diffedit", *common, "--mask", "mask.png", "--source", "a green pear", "--guidance", 2)
    assert np.array_equal(pixels("edited.png")[kept], pixels("a.png")[kept])


@pytest.mark.parametrize("where", ["inpaint", "dps", "diffedit", "prompt_to_prompt"])
def test_after_ctrl_c_there_is_nothing(where, monkeypatch, tmp_path, capfd):
    save_picture("a.png")
    save_mask("mask.png")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(editing, where, interrupted)
    arguments = {
        "inpaint": ["inpaint", "--mask", "mask.png", "--image", "a.png"],
        "dps": ["restore", "--task", "superres", "--image", "a.png"],
        "diffedit": ["diffedit", "--image", "a.png", "--mask", "mask.png", "--prompt", "red heart"],
        "prompt_to_prompt": ["prompt", "--source", "red heart", "--prompt", "blue heart"],
    }[where]
    assert run("edit", *arguments, "--out", "new/b.png") == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "mask.png"]
    assert "Traceback" not in capfd.readouterr().err
