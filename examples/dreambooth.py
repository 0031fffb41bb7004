"""DreamBooth (Ruiz et al. 2023): the whole network learns one heart from four pictures, and still draws the others.

The heart is called "zork heart", zork being a word without a meaning. The prior-preservation loss (Eq. 2) keeps what
"heart" meant: the second term is the loss of pictures that the model itself drew of hearts before. `--prior 0` leaves
it out.
"""

import argparse
import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import fastdiff
from fastdiff import pictures
from fastdiff.train.losses import denoising_loss
from fastdiff.train.process import Process

WORD = "zork"


def draw(folder):
    """Four pictures of one heart: turquoise, with a dark edge and yellow dots."""
    folder.mkdir(exist_ok=True)
    angles = [2 * math.pi * k / 100 for k in range(100)]
    x = [16 * math.sin(t) ** 3 for t in angles]
    y = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in angles]
    for number, (turn, size) in enumerate([(0, 6.6), (12, 6.0), (-10, 5.6), (5, 6.9)]):
        image = Image.new("RGB", (256, 256), "white")
        brush = ImageDraw.Draw(image)
        for part, colour in ((size, "#0f7f7a"), (0.86 * size, "#2fd0c4")):
            brush.polygon([(128 + part * a, 120 - part * b) for a, b in zip(x, y)], fill=colour)
        for a, b in ((-7, 5), (7, 5), (0, 1), (-5, -2), (5, -2), (0, -8)):
            left, top, radius = 128 + size * a, 120 - size * b, 1.9 * size
            brush.ellipse((left - radius, top - radius, left + radius, top + radius), fill="#ffd84a")
        turned = image.rotate(turn, fillcolor="white", resample=Image.Resampling.BICUBIC)
        turned.save(folder / f"{number}.png")


def learn(model, z, name, like, steps, *, prior=1.0, batch=4, lr=3e-4, own=16):
    """Train the U-Net on latents z, (N, C, H, W), of the thing, and on `own` samples of what it is `like`."""
    process, generator = Process.of(model.info.schedule, model.info.prediction), torch.Generator().manual_seed(0)
    known = sample(model, [like] * own, seed=1, guidance=1.5)
    thing, others = model.info.condition(name, batch), model.info.condition(like, batch)
    weights = list(model.unet.requires_grad_().parameters())
    optimizer = torch.optim.AdamW(weights, lr=lr)

    def loss_of(latents, cond):
        chosen = latents[torch.randint(len(latents), (batch,), generator=generator)]
        return denoising_loss(model, process, chosen, generator, **cond).mean()

    for _ in range(steps):
        loss = loss_of(z, thing)
        if prior > 0:
            loss = loss + prior * loss_of(known, others)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)


def sample(model, prompts, *, seed=0, guidance=3.0):
    """Latents of each prompt."""
    cond, uncond = model.info.condition(prompts, len(prompts)), model.info.condition(None, len(prompts))
    shape = (len(prompts), *model.info.shape)
    return fastdiff.sample(model, shape, steps=20, guidance=guidance, cond=cond, uncond=uncond, seed=seed)


def fixed_loss(model, z, prompt):
    """The loss of latents with a prompt, at the same noises and times in every call."""
    process, generator = Process.of(model.info.schedule, model.info.prediction), torch.Generator().manual_seed(1)
    z = z.repeat(8, 1, 1, 1)
    with torch.no_grad():
        return denoising_loss(model, process, z, generator, **model.info.condition(prompt, len(z))).mean().item()


def main():
    """Rows of dreambooth.png: given; known hearts before; the new heart; known hearts after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder of 3 to 5 pictures of one thing; drawn if not given")
    parser.add_argument("--like", default="heart", help="known words for what kind of thing it is (default: heart)")
    parser.add_argument("--prior", type=float, default=1.0, help="weight of the prior (default: 1)")
    parser.add_argument("--steps", type=int, default=150, help="default: 150")
    options = parser.parse_args()
    folder = options.pictures or Path("given")
    if options.pictures is None:
        draw(folder)
    given = torch.stack([pictures.load_square(path, 64) for path in sorted(folder.iterdir())])
    model = fastdiff.load("emoji-ldm-64")
    model.add_word(WORD)
    name = f"{WORD} {options.like}"
    others = [f"{colour} {options.like}" for colour in ("red", "blue", "green", "black")]
    with torch.no_grad():
        z = model.encode(given)
    before = sample(model, others)
    losses = fixed_loss(model, z, name), fixed_loss(model, before, options.like)
    learn(model, z, name, options.like, options.steps, prior=options.prior)
    print(f"loss of the pictures: {losses[0]:.3f} before, {fixed_loss(model, z, name):.3f} after")
    print(f"loss of what it drew: {losses[1]:.3f} before, {fixed_loss(model, before, options.like):.3f} after")
    latents = torch.cat([before, sample(model, [name] * 4), sample(model, others)])
    rows = torch.cat([given[torch.arange(4) % len(given)], model.decode(latents)])
    pictures.save_png("dreambooth.png", pictures.grid(rows, 4), zoom=2)


if __name__ == "__main__":
    main()
