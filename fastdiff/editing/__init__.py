"""Changing a picture that is there: back into noise and forward again, filling its holes, and finding what was measured
(its operators are in `fastdiff.editing.operators`)."""

from fastdiff.editing.alignment import Tokens, tokens_of
from fastdiff.editing.ddim_inversion import invert
from fastdiff.editing.diffedit import diffedit, diffedit_mask
from fastdiff.editing.imputation import GREY, colorization_tensors, imputation
from fastdiff.editing.inpainting import inpaint
from fastdiff.editing.inversion import diffuse, encode
from fastdiff.editing.magicmix import magicmix
from fastdiff.editing.mbir import mbir
from fastdiff.editing.null_text import NullText, null_text_inversion
from fastdiff.editing.posterior import dps, mcg
from fastdiff.editing.prompt_control import LocalBlend, PromptEdit, cross_attention_control, prompt_edit
from fastdiff.editing.prompt_to_prompt import prompt_to_prompt
from fastdiff.editing.purification import purify, purifying_langevin
from fastdiff.editing.reconstruction import reconstruct
from fastdiff.editing.repaint import Jumps, repaint, slow_times
from fastdiff.editing.replacement import glide, palette, replacement
from fastdiff.editing.total_variation import TotalVariationADMM, admm_tv, conjugate_gradients

__all__ = [
    "GREY",
    "Jumps",
    "LocalBlend",
    "NullText",
    "PromptEdit",
    "Tokens",
    "TotalVariationADMM",
    "admm_tv",
    "colorization_tensors",
    "conjugate_gradients",
    "cross_attention_control",
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
    "mbir",
    "mcg",
    "null_text_inversion",
    "palette",
    "prompt_edit",
    "prompt_to_prompt",
    "purify",
    "purifying_langevin",
    "reconstruct",
    "repaint",
    "replacement",
    "slow_times",
    "tokens_of",
]
