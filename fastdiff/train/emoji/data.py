"""The emoji of Noto Color Emoji as a small image data set with the Unicode groups as its classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import expect

FONT_SIZE = 109  # the only size of the bitmaps in NotoColorEmoji.ttf
FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
)
SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
HELD_OUT_EVERY = 25  # of each 25 emoji (with all their skin tones), one is kept for validation


@dataclass(frozen=True)
class EmojiData:
    """images: (N, 3, size, size) uint8 on white. labels: (N,) int64. weights: (N,) float64, 1 shared among the skin
    tones of one emoji. held_out: (N,) bool, the validation part. emoji: N sequences. classes: the names of the labels.
    names: N short names of Unicode's CLDR, those of countries after "flag".
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    held_out: NDArray[np.bool_]
    emoji: tuple[str, ...]
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 over images and labels: runs on the same data have the same one."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


def emoji_groups() -> dict[str, tuple[str, ...]]:
    """Class name -> its emoji without skin tones, in Unicode's order."""
    text = resources.files("fastdiff.train.emoji").joinpath("groups.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return {name: tuple(sequences.split(" ")) for name, _, sequences in rows}


def find_font(path: str | Path | None = None) -> Path:
    """The font file: `path`, or the first of the usual places. Raises FileNotFoundError that says how to get it."""
    candidates = [Path(path)] if path else [Path(p) for p in FONT_PATHS]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"NotoColorEmoji.ttf not found in {', '.join(map(str, candidates))}; install it (Debian, Ubuntu: "
        "apt install fonts-noto-color-emoji) or give its path with --font"
    )


def load_emoji(size: int = 32, *, font: str | Path | None = None) -> EmojiData:
    """Render every fully-qualified emoji that the font has, one skin tone at most, at size x size pixels.

    Needs the packages of the `train` extra, and Pillow with raqm, which joins sequences into one glyph. Raises
    ImportError without them, FileNotFoundError without the font, ValueError for a file that is no font of emoji.
    """
    try:
        import emoji
    except ImportError as error:
        raise ImportError(
            f"fastdiff train needs the emoji's names: pip install 'torch-fastdiff[train]' ({error})"
        ) from error
    from PIL import ImageFont, features

    expect(bool(features.check("raqm")), "this Pillow lacks raqm, which draws emoji sequences; install its wheel")
    path = find_font(font)
    try:
        face = ImageFont.truetype(str(path), FONT_SIZE)
    except OSError as error:
        raise ValueError(f"{path} is no font of emoji of {FONT_SIZE} pixels: {error}") from error
    groups = emoji_groups()
    label_of = {_bare(e): label for label, members in enumerate(groups.values()) for e in members}
    sequences = [e for e, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"]]

    images, labels, names = [], [], []
    for sequence in sequences:
        tones = {c for c in sequence if c in SKIN_TONES}
        if len(tones) > 1 or _bare(sequence) not in label_of:
            continue
        image = _render(face, sequence, size)
        if image is not None:
            images.append(image)
            labels.append(label_of[_bare(sequence)])
            names.append(sequence)

    expect(len(names) > 0, f"{path} is a font without emoji")
    families = [_bare(name) for name in names]
    order = {family: i for i, family in enumerate(dict.fromkeys(families))}
    family = np.array([order[f] for f in families])
    return EmojiData(
        images=np.stack(images),
        labels=np.array(labels),
        weights=1.0 / np.bincount(family)[family],
        held_out=family % HELD_OUT_EVERY == HELD_OUT_EVERY - 1,
        emoji=tuple(names),
        classes=tuple(groups),
        names=tuple(short_name(name, emoji.EMOJI_DATA[name]["en"]) for name in names),
    )


def short_name(sequence: str, alias: str) -> str:
    """The name of an emoji from its alias: ":red_apple:" -> "red apple", ":Norway:" -> "flag Norway"."""
    name = alias.strip(":").replace("_", " ")
    is_flag = "\U0001f1e6" <= sequence[0] <= "\U0001f1ff" or "\U000e007f" in sequence  # letters, or a tag sequence
    return f"flag {name}" if is_flag else name


def _bare(sequence: str) -> str:
    """The sequence without skin tones and variation selectors, which come and go with them."""
    return "".join(c for c in sequence if c not in SKIN_TONES and c != "\ufe0f")


def _render(face, sequence: str, size: int) -> NDArray[np.uint8] | None:
    """(3, size, size) uint8 on white, or None where the font lacks the emoji or draws it as several glyphs."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = face.getbbox(sequence)
    one_glyph = round(face.getlength("\U0001f600"))
    if bottom <= top or round(face.getlength(sequence)) != one_glyph:
        return None
    side = max(right - left, bottom - top)
    canvas = Image.new("RGB", (side, side), "white")
    origin = ((side - (right - left)) / 2 - left, (side - (bottom - top)) / 2 - top)
    ImageDraw.Draw(canvas).text(origin, sequence, font=face, embedded_color=True)
    pixels = np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS))
    return None if (pixels == 255).all() else np.ascontiguousarray(pixels.transpose(2, 0, 1))
