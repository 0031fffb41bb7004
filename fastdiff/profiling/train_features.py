"""Training of `emoji-features`, the extractor for the bundled models.

    python -m fastdiff.profiling.train_features --out fastdiff/profiling

Minutes on one core. The network learns two things at once from augmented emoji: which of the groups a picture belongs
to, and to draw it again at 16 x 16 pixels from its features alone, so that they hold shape and colour as well.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.files import replacing, writable_folder
from fastdiff.profiling.features import DRAWN, SIZE, EmojiFeatures
from fastdiff.train.emoji.data import EmojiData, load_emoji

STEPS, BATCH, LEARNING_RATE, SEED = 3000, 64, 2e-3, 0
DRAWING_WEIGHT = 4.0


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, H, W) in [-1, 1], shifted, with other contrast and brightness, and noise."""
    padded = F.pad(images, (3, 3, 3, 3), value=1.0)
    shifts = torch.randint(0, 7, (len(images), 2), generator=generator).tolist()
    shifted = torch.stack([p[:, dy : dy + SIZE, dx : dx + SIZE] for p, (dy, dx) in zip(padded, shifts)])
    factor, offset = 1 + 0.15 * torch.randn(2, len(images), 1, 1, 1, generator=generator)
    noise = 0.1 * torch.rand(len(images), 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator)
    return ((shifted - 1) * factor + 1 + (offset - 1) + noise).clamp(-1, 1)


def losses(network: EmojiFeatures, images: Tensor, target: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cross-entropy, drawing error, logits)."""
    features = network.raw(images)
    logits = network.logits(features)
    drawn = network.drawing(F.silu(features)).view(-1, 3, DRAWN, DRAWN)
    error = F.mse_loss(drawn, F.adaptive_avg_pool2d(target, DRAWN))
    return F.cross_entropy(logits, labels, label_smoothing=0.1), error, logits


def one_tone_each(data: EmojiData) -> np.ndarray:
    """Indices of one picture an emoji, a random skin tone of those there are, of the training part."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(data.images))
    bare = ["".join(c for c in e if not 0x1F3FB <= ord(c) <= 0x1F3FF and c != "\ufe0f") for e in data.emoji]
    seen: dict[str, int] = {}
    for i in order:
        if not data.held_out[i]:
            seen.setdefault(bare[i], int(i))
    return np.sort(np.array(list(seen.values())))


def train(data: EmojiData, steps: int) -> EmojiFeatures:
    """The network after `steps` steps; prints the loss."""
    torch.manual_seed(SEED)
    network = EmojiFeatures(len(data.classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    kept = torch.from_numpy(~data.held_out)
    images = torch.from_numpy(data.images)[kept].float().div(127.5).sub(1)
    labels, weights = torch.from_numpy(data.labels)[kept], torch.from_numpy(data.weights)[kept]
    generator = torch.Generator().manual_seed(SEED)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / steps)))
        chosen = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        target = augmented(images[chosen], generator).contiguous(memory_format=torch.channels_last)
        entropy, error, _ = losses(network, target, target, labels[chosen])
        (entropy + DRAWING_WEIGHT * error).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(
                f"step {step}: cross-entropy {float(entropy.detach()):.3f}, drawing {float(error.detach()):.4f}",
                flush=True,
            )
    return network.eval().requires_grad_(False)


def main() -> None:
    """Train and write emoji-features.safetensors and its card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=".", help="folder for the two files")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    folder = writable_folder(arguments.out)
    data = load_emoji(SIZE)
    started = time.monotonic()
    network = train(data, arguments.steps)
    minutes = (time.monotonic() - started) / 60
    write(folder, network, data, arguments.steps, minutes)


def write(folder: Path, network: EmojiFeatures, data: EmojiData, steps: int, minutes: float) -> None:
    """The weights with the features of the data, and the card."""
    import hashlib

    import jinja2
    from safetensors.torch import save

    held = torch.from_numpy(data.held_out)
    images, labels = torch.from_numpy(data.images).float().div(127.5).sub(1), torch.from_numpy(data.labels)
    with torch.no_grad():
        _, drawing, logits = losses(network, images[held], images[held], labels[held])
        mean_picture = F.adaptive_avg_pool2d(images[~held].mean(0, keepdim=True), DRAWN)
        of_mean = F.mse_loss(
            mean_picture.expand(int(held.sum()), -1, -1, -1), F.adaptive_avg_pool2d(images[held], DRAWN)
        )
        reference = torch.from_numpy(one_tone_each(data))
        raw = torch.cat([network.raw(part) for part in images[reference].split(256)])
        network.mean.copy_(raw.mean(0))  # type: ignore[operator]
        network.std.copy_(raw.std(0))  # type: ignore[operator]
        features = (raw - network.mean) / network.std  # type: ignore[operator]
    shares = (torch.bincount(labels[reference], minlength=len(data.classes)) / len(reference)).tolist()
    about = {"name": "emoji-features", "classes": list(data.classes), "class_shares": shares}
    state = {key: value.half().contiguous() for key, value in {**network.state_dict(), "data": features}.items()}
    content = save(state, {"about": json.dumps(about)})
    with replacing(folder / "emoji-features.safetensors") as path:
        path.write_bytes(content)
    facts = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "features": features.shape[1],
        "pictures": int((~held).sum()),
        "held_out": int(held.sum()),
        "data_sha256": data.fingerprint(),
        "drawing_weight": DRAWING_WEIGHT,
        "steps": steps,
        "batch": BATCH,
        "minutes": minutes,
        "seed": SEED,
        "accuracy": float((logits.argmax(1) == labels[held]).float().mean()),
        "largest": max(shares),
        "drawing": float(drawing),
        "drawing_of_mean": float(of_mean),
        "reference": len(reference),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    template = resources.files("fastdiff.profiling").joinpath("features_card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    card = environment.from_string(template).render(**facts)
    with replacing(folder / "emoji-features.md") as path:
        path.write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
