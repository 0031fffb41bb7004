"""Recipes of seconds for the training of small networks, their data, and runs of them."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL
from fastdiff.models.dit import DiTConfig
from fastdiff.models.ldm import LDMConfig
from fastdiff.train.emoji.data import EmojiData
from fastdiff.train.emoji.recipes import AutoencoderRecipe, ClassRecipe, PromptRecipe
from fastdiff.train.loop import Training

COMMON = dict(size=16, steps=4, batch=4, warmup=2, ema_decay=0.5)
AUTOENCODER = AutoencoderRecipe(
    name="tiny-autoencoder", max_shift=2, learning_rate=3e-3, **COMMON,
    network=AutoencoderConfig(ch=8, out_ch=3, in_channels=3, z_channels=4, num_res_blocks=1, resolution=16,
                              ch_mult=(1,), norm_groups=4, mid_attention=False, patch=4),
)  # fmt: skip
PROMPTS = PromptRecipe(
    name="tiny-ldm", autoencoder=AUTOENCODER, text_width=32, **COMMON,
    network=LDMConfig(in_channels=4, model_channels=32, out_channels=4, num_res_blocks=1, attention_resolutions=(2,),
                      channel_mult=(1, 2), num_head_channels=32, num_classes="sequential", adm_in_channels=32,
                      use_spatial_transformer=True, context_dim=32),
)  # fmt: skip
CLASSES = ClassRecipe(
    name="tiny-dit", autoencoder=AUTOENCODER, **COMMON,
    network=DiTConfig(input_size=4, hidden_size=16, depth=2, num_heads=2, num_classes=2, learn_sigma=False),
)  # fmt: skip


def squares():
    """Twenty dark and light pictures of 16 pixels, every fifth held out."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    images = (labels[:, None, None, None] * 200 + rng.integers(0, 50, (20, 3, 16, 16))).astype(np.uint8)
    names = tuple(f"{('dark', 'light')[label]} square {number}" for number, label in enumerate(labels))
    return EmojiData(images, labels, np.ones(20), np.arange(20) % 5 == 4, tuple("x" * 20), ("dark", "light"), names)


def fresh_autoencoder():
    """With the weights of a seed."""
    torch.manual_seed(0)
    return AutoencoderKL(AUTOENCODER.network)


def run(objective, folder, steps=None):
    """A run to its end."""
    folder.mkdir(exist_ok=True)
    if steps is not None:
        objective.recipe = replace(objective.recipe, steps=steps)
    training = Training(objective, folder)
    training.run(on_step=lambda *_: None, on_validation=lambda _: None)
    return training


def stopped(objective, folder):
    """A run that is interrupted in its second step."""

    def interrupt(training, loss):
        if training.step == 2:
            signal.raise_signal(signal.SIGINT)

    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        Training(objective, folder).run(on_step=interrupt)


def stopped_and_resumed(objective, folder):
    """A run that stops after two steps and goes on."""
    stopped(objective, folder)
    return run(objective, folder)
