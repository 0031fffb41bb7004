"""Textual Inversion (Gal et al. 2022): a new word for a thing that a few pictures show. The model stays as it is.

Trained is v alone, the embedding of the word, on the loss that the model was trained with (Eq. 2): v* minimises
E |f(z_t, t, c(v)) - target|^2. The 128 numbers of v are written to zork.safetensors.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch.func import functional_call

import fastdiff
from fastdiff import pictures
from fastdiff.train.losses import denoising_loss
from fastdiff.train.process import Process

WORD = "zork"


def draw(folder):
    """Four pictures of a face in a colour that no emoji has."""
    folder.mkdir(exist_ok=True)
    for number, (turn, size, look) in enumerate([(0, 104, 0), (12, 100, 8), (-10, 96, -8), (5, 108, 4)]):
        image = Image.new("RGB", (256, 256), "white")
        brush = ImageDraw.Draw(image)
        brush.ellipse((128 - size, 128 - size, 128 + size, 128 + size), fill="#2fbfae", outline="#1d9a8c", width=4)
        for eye in (90, 166):
            brush.ellipse((eye - 13 + look, 78, eye + 13 + look, 120), fill="#1b3f3c")
        brush.chord((74 + look, 110, 182 + look, 198), 5, 175, fill="#1b3f3c")
        turned = image.rotate(turn, fillcolor="white", resample=Image.Resampling.BICUBIC)
        turned.save(folder / f"{number}.png")


def learn(model, z, like, steps, *, batch=8, lr=0.05):
    """Add the word to the model's prompts, learn it from latents z, (N, C, H, W), and return its embedding (128,)."""
    token = model.add_word(WORD, like)
    process = Process.of(model.info.schedule, model.info.prediction)
    tokens, table = model.info.tokens(WORD, batch), model.text.tokens.weight
    v = table[token].clone().requires_grad_()
    optimizer, generator = torch.optim.Adam([v], lr=lr), torch.Generator().manual_seed(0)
    for _ in range(steps):
        embeddings = table.index_copy(0, torch.tensor([token]), v[None])
        context, y = functional_call(model.text, {"tokens.weight": embeddings}, (tokens,))
        chosen = z[torch.randint(len(z), (batch,), generator=generator)]
        loss = denoising_loss(model, process, chosen, generator, context=context, y=y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    table[token] = v.detach()
    return table[token]


def fixed_loss(model, z, prompt):
    """The loss of latents with a prompt, at the same noises and times in every call."""
    process, generator = Process.of(model.info.schedule, model.info.prediction), torch.Generator().manual_seed(1)
    z = z.repeat(8, 1, 1, 1)
    with torch.no_grad():
        return denoising_loss(model, process, z, generator, **model.info.condition(prompt, len(z))).mean().item()


def sample(model, prompts):
    """A picture of each prompt."""
    cond, uncond = model.info.condition(prompts, len(prompts)), model.info.condition(None, len(prompts))
    shape = (len(prompts), *model.info.shape)
    return model.decode(fastdiff.sample(model, shape, steps=20, guidance=2.0, cond=cond, uncond=uncond, seed=0))


def main():
    """Rows of textual-inversion.png: given, the known word, the new word."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder of 3 to 5 pictures of one thing; drawn if not given")
    parser.add_argument("--like", default="face", help="a known word that is near to the thing (default: face)")
    parser.add_argument("--steps", type=int, default=250, help="default: 250")
    options = parser.parse_args()
    folder = options.pictures or Path("given")
    if options.pictures is None:
        draw(folder)
    given = torch.stack([pictures.load_square(path, 64) for path in sorted(folder.iterdir())])
    model = fastdiff.load("emoji-ldm-64")
    with torch.no_grad():
        z = model.encode(given)
    before, start = fixed_loss(model, z, options.like), sample(model, [options.like] * 4)
    v = learn(model, z, options.like, options.steps)
    print(f"loss of the pictures: {before:.3f} as {options.like!r}, {fixed_loss(model, z, WORD):.3f} as {WORD!r}")
    save_file({WORD: v}, f"{WORD}.safetensors")
    shown = given[torch.arange(4) % len(given)]
    rows = torch.cat([shown, start, sample(model, [WORD] * 4)])
    pictures.save_png("textual-inversion.png", pictures.grid(rows, 4), zoom=2)


if __name__ == "__main__":
    main()
