"""The pictures of the gallery, and the numbers beside them, from the bundled models:

python docs/gallery/make.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

# --8<-- [start:imports]
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdiff
from fastdiff import editing
from fastdiff.editing.operators import AveragePooling
from fastdiff.pictures import grid, save_png
from fastdiff.profiling.features import emoji_extractor

Rows = dict[str, Tensor]  # (B, 3, H, W) in [-1, 1], by what they are
# --8<-- [end:imports]

# --8<-- [start:faces]
mask = torch.ones(32, 32)  # 1 where the picture is known
mask[16:27, 6:26] = 0


def faces(steps: int = 25) -> Rows:
    """Faces whose mouths are unknown, filled twice."""
    model = fastdiff.load("emoji-unet-32")
    smileys = {"cond": model.info.condition("smileys", 6), "uncond": model.info.condition(None, 6), "guidance": 2.0}
    pictures = fastdiff.sample(model, (6, 3, 32, 32), steps=20, seed=0, **smileys).clamp(-1, 1)
    method = editing.repaint(jumps=editing.Jumps(jump_length=5, jump_n_sample=3))
    first, second = (
        editing.inpaint(model, pictures, mask, method=method, steps=steps, seed=seed, **smileys) for seed in (1, 2)
    )
    return {"picture": pictures, "known": pictures * mask, "filled": first, "filled again": second}


# --8<-- [end:faces]


# --8<-- [start:edits]
def edits(prompts: tuple[str, str], edit: str = "replace", steps: int = 20) -> Rows:
    """A prompt, the edit of it by prompt-to-prompt, and the second prompt alone, from the same noise; three times."""
    model = fastdiff.load("emoji-ldm-64")
    info, rows = model.info, []
    given = {"cond": info.condition(prompts, 2), "uncond": info.condition(None, 1), "guidance": 3.0}
    for cross, self_attention in (0.8, 0.4), (0.0, 0.0):  # shares of the steps with the attention of the first prompt
        control = editing.prompt_edit(
            prompts, steps=steps, length=info.tokenizer.length, tokenizer=info.tokenizer, edit=edit, cross=cross,
            self_attention=self_attention,
        )  # fmt: skip
        z = [editing.prompt_to_prompt(model, (1, *info.shape), control, seed=seed, **given) for seed in range(3)]
        rows.append(model.decode(torch.cat(z)).clamp(-1, 1))
    return {"first prompt": rows[0][::2], "edited": rows[0][1::2], "second prompt alone": rows[1][1::2]}


# --8<-- [end:edits]


# --8<-- [start:enlarged]
def enlarged(steps: int = 100, count: int = 6) -> Rows:
    """Pictures of food from their 8x8 pixels."""
    model, shrink = fastdiff.load("emoji-unet-32"), AveragePooling(4)
    food = {"cond": model.info.condition("food", count), "uncond": model.info.condition(None, count), "guidance": 2.0}
    pictures = fastdiff.sample(model, (count, 3, 32, 32), steps=20, seed=0, **food).clamp(-1, 1)
    measured = shrink(pictures)
    found = editing.dps(model, measured, shrink, pictures, scale=2.0, solver="ddim", steps=steps, seed=1, **food)
    bicubic = F.interpolate(measured, scale_factor=4, mode="bicubic")
    return {"picture": pictures, "measured": shrink.lift(measured), "bicubic": bicubic, "DPS": found}


# --8<-- [end:enlarged]

# --8<-- [start:purified]
victim = emoji_extractor().function


def answers(pictures: Tensor) -> Tensor:
    """(B, classes): the logits of the classifier that `fastdiff profile` has its features from."""
    return victim.logits(victim.raw(pictures))


def attack(pictures: Tensor, labels: Tensor, size: float = 16 / 255, steps: int = 20) -> Tensor:
    """Projected gradient descent (Madry et al. 2018): no value changes by more than size."""
    x = pictures
    for _ in range(steps):
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(answers(leaf), labels), leaf)
        x = (x + size / 4 * gradient.sign()).clamp(pictures - size, pictures + size).clamp(-1, 1)
    return x


def purified(steps: int = 10) -> Rows:
    """Four pictures of each class, attacked, and purified by a model that is not told the class."""
    model = fastdiff.load("emoji-unet-32")
    classes = [name for name in model.info.classes for _ in range(4)]
    cond, uncond = model.info.condition(classes, 36), model.info.condition(None, 36)
    pictures = fastdiff.sample(
        model, (36, 3, 32, 32), steps=20, seed=0, cond=cond, uncond=uncond, guidance=2.0
    ).clamp(-1, 1)  # fmt: skip
    attacked = attack(pictures, cond["y"])
    times = [0.3 * (1 - k / steps) for k in range(steps + 1)]
    clean = editing.purify(model, attacked, 0.3, solver="ddpm", grid=times, seed=1, cond=uncond).clamp(-1, 1)
    return {"picture": pictures, "attacked": attacked, "change, 8 times": 8 * (attacked - pictures), "purified": clean}


# --8<-- [end:purified]


def changed(rows: Rows) -> tuple[int, int]:
    """Values of known pixels that differ after both fillings, and how many there are."""
    known = (mask == 1).expand_as(rows["picture"])
    different = [(rows[name] != rows["picture"])[known] for name in ("filled", "filled again")]
    return int(torch.cat(different).sum()), 2 * int(known.sum())


def overlap(rows: Rows, name: str) -> float:
    """Of the silhouettes of `rows[name]` with those of the first prompt: the common part of the area of both."""
    a, b = (rows[each].amin(1) < 0.7 for each in ("first prompt", name))  # darker than the background
    return float((a & b).sum() / (a | b).sum())


def error(rows: Rows, name: str, see: Callable[[Tensor], Tensor]) -> float:
    """RMS of what `see` makes of these pictures and of the true ones; white is 1 and black is -1."""
    return float((see(rows[name]) - see(rows["picture"])).square().mean().sqrt())


def right(rows: Rows, name: str) -> int:
    """Of how many pictures the classifier names the class."""
    labels = torch.arange(9).repeat_interleave(4)
    return int((answers(rows[name]).argmax(1) == labels).sum())


def main() -> None:
    """Draws everything, and says what was found."""
    folder = Path(__file__).parent

    def save(name: str, rows: Rows, chosen: slice = slice(None)) -> None:
        pictures = [each[chosen] for each in rows.values()]
        zoom = 128 // pictures[0].shape[-1]
        save_png(folder / f"{name}.png", grid(torch.cat(pictures), len(pictures[0])), zoom=zoom)

    rows = faces()
    save("faces", rows)
    print("faces: {} of {} known values changed".format(*changed(rows)))
    hearts, cars = edits(("red heart", "blue heart")), edits(("automobile", "blue automobile"), "refine")
    save("edits", {name: torch.cat([hearts[name], cars[name]]) for name in hearts})
    for what, rows in ("hearts", hearts), ("automobiles", cars):
        found = overlap(rows, "edited"), overlap(rows, "second prompt alone")
        print(
            "{}: silhouettes overlap by {:.2f} with the edit, {:.2f} with the second prompt alone".format(what, *found)
        )
    rows = enlarged()
    save("enlarged", rows)
    for size, see in (8, AveragePooling(4)), (32, AveragePooling(1)):
        found = error(rows, "bicubic", see), error(rows, "DPS", see)
        print("enlarged: error of the {0}x{0} pixels {1:.3f} bicubic, {2:.3f} by DPS".format(size, *found))
    rows = purified()
    save("purified", rows, slice(3, None, 4))
    counts = ", ".join(f"{right(rows, name)} {name}" for name in ("picture", "attacked", "purified"))
    print(f"purified: the classifier is right on so many of {len(rows['picture'])}: {counts}")


if __name__ == "__main__":
    main()
