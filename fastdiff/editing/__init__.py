"""Changing a picture that is there: back into noise and forward again, and filling its holes."""

from fastdiff.editing.imputation import GREY, colorization_tensors, imputation
from fastdiff.editing.inpainting import inpaint
from fastdiff.editing.inversion import diffuse, encode
from fastdiff.editing.posterior import dps, mcg
from fastdiff.editing.repaint import Jumps, repaint, slow_times
from fastdiff.editing.replacement import glide, palette, replacement

__all__ = [
    "GREY",
    "Jumps",
    "colorization_tensors",
    "diffuse",
    "dps",
    "encode",
    "glide",
    "imputation",
    "inpaint",
    "mcg",
    "palette",
    "repaint",
    "replacement",
    "slow_times",
]
