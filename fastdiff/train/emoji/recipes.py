"""What `fastdiff train NAME` trains: the network and every setting of the run, reproduced by the name and a seed."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.models.autoencoder import AutoencoderConfig
from fastdiff.models.dit import DiTConfig
from fastdiff.models.ldm import LDMConfig
from fastdiff.models.unet import UNetConfig
from fastdiff.train.process import Process
from fastdiff.train.run import Run


@dataclass(frozen=True, kw_only=True)
class EmojiRun(Run):
    """size: pixels a side of the pictures."""

    size: int


@dataclass(frozen=True, kw_only=True)
class Diffusion(EmojiRun):
    """schedule, prediction: names in `fastdiff.schedules.SCHEDULES` and of the network's output. class_dropout: share
    of samples trained without their class or prompt, for classifier-free guidance (Ho & Salimans 2022).

    Raises ValueError for a schedule or prediction that cannot be trained, a learned variance and EDM's schedule.
    """

    schedule: str = "cosine"
    prediction: str = "v"
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        process = self.process()
        process.expect_single()
        process.expect_uniform()

    def process(self) -> Process:
        """What the network is trained on."""
        return Process.of(self.schedule, self.prediction)


@dataclass(frozen=True, kw_only=True)
class Recipe(Diffusion):
    """A class-conditional U-Net on pixels."""

    network: UNetConfig


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(EmojiRun):
    """A KL autoencoder. kl_weight: of the mean KL divergence of a latent in nats, beside the mean errors of a colour
    value in [-1, 1]. max_shift: pixels by which pictures are moved at random; half of them are mirrored as well."""

    network: AutoencoderConfig
    kl_weight: float = 3e-4
    max_shift: int = 4


@dataclass(frozen=True, kw_only=True)
class LatentRecipe(Diffusion):
    """A network on the latents of an autoencoder, which is trained first."""

    autoencoder: AutoencoderRecipe

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one sample."""
        side = self.size // self.autoencoder.network.factor
        return self.autoencoder.network.embed_dim or self.autoencoder.network.z_channels, side, side


@dataclass(frozen=True, kw_only=True)
class PromptRecipe(LatentRecipe):
    """A U-Net with cross-attention to the words of the emoji's names. text_width, text_layers: of the text encoder.
    word_dropout: share of the words that are left out, so that the rest mean something on their own."""

    network: LDMConfig
    text_width: int = 128
    text_layers: int = 2
    word_dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ClassRecipe(LatentRecipe):
    """A diffusion transformer with the groups of the emoji as classes."""

    network: DiTConfig


AUTOENCODER = AutoencoderRecipe(
    name="emoji-autoencoder-64",
    network=AutoencoderConfig(
        ch=96, out_ch=3, in_channels=3, z_channels=4, num_res_blocks=1, resolution=64, ch_mult=(1,), norm_groups=8,
        mid_attention=False, patch=4,
    ),
    size=64,
    steps=6_000,
    batch=16,
    learning_rate=1.5e-3,
    warmup=100,
)  # fmt: skip

RECIPES: dict[str, EmojiRun] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="emoji-unet-32",
            network=UNetConfig(
                channels=(64, 96, 144), blocks=1, attention_levels=(2,), head_channels=48, num_classes=9, positions=32
            ),
            size=32,
            steps=12_000,
            batch=32,
            learning_rate=6e-4,
        ),
        AUTOENCODER,
        PromptRecipe(
            name="emoji-ldm-64",
            autoencoder=AUTOENCODER,
            network=LDMConfig(
                in_channels=4,
                model_channels=32,
                out_channels=4,
                num_res_blocks=1,
                attention_resolutions=(2,),
                channel_mult=(2, 4),
                num_head_channels=32,
                use_scale_shift_norm=True,
                num_classes="sequential",
                adm_in_channels=128,
                use_spatial_transformer=True,
                context_dim=128,
                use_linear_in_transformer=True,
            ),
            size=64,
            steps=12_000,
            batch=32,
            learning_rate=8e-4,
        ),
        ClassRecipe(
            name="emoji-dit-64",
            autoencoder=AUTOENCODER,
            network=DiTConfig(input_size=16, hidden_size=192, depth=6, num_heads=6, num_classes=9, learn_sigma=False),
            size=64,
            steps=16_000,
            batch=32,
            learning_rate=6e-4,
        ),
    )
}
