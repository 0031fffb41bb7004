"""Changing a picture that is there: back into noise and forward again, and filling its holes."""

from fastdiff.editing.ddim_inversion import invert
from fastdiff.editing.diffedit import diffedit, diffedit_mask
from fastdiff.editing.imputation import GREY, colorization_tensors, imputation
from fastdiff.editing.inpainting import inpaint
from fastdiff.editing.inversion import diffuse, encode
from fastdiff.editing.magicmix import magicmix
from fastdiff.editing.null_text import NullText, null_text_inversion
from fastdiff.editing.posterior import dps, mcg
from fastdiff.editing.repaint import Jumps, repaint, slow_times
from fastdiff.editing.replacement import glide, palette, replacement

__all__ = [
    "GREY",
    "Jumps",
    "NullText",
    "colorization_tensors",
    "diffedit",
    "diffedit_mask",
    "diffuse",
    "dps",
    "encode",
    "glide",
    "imputation",
    "inpaint",
    "invert",
    "magicmix",
    "mcg",
    "null_text_inversion",
    "palette",
    "repaint",
    "replacement",
    "slow_times",
]
