"""What `fastdiff train NAME` trains: the network and every setting of the run, reproduced by the name and a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastdiff.errors import expect
from fastdiff.models.autoencoder import AutoencoderConfig
from fastdiff.models.bundled.upsampler import UpsamplerConfig
from fastdiff.models.dit import DiTConfig
from fastdiff.models.info import Sampling
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


@dataclass(frozen=True, kw_only=True)
class Student(Diffusion):
    """A network that needs fewer steps than its teacher, of the same form.

    teacher: a bundled model, with the guidance that is distilled with it, or the recipe of a student that has the
    guidance in it. student_steps: of DDIM, half as many as the teacher takes; of a consistency model, the most steps.
    """

    teacher: str | Student
    guidance: float
    student_steps: int

    @property
    def original(self) -> str:
        """The bundled model at the beginning."""
        return self.teacher if isinstance(self.teacher, str) else self.teacher.original

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(steps of the student, steps of its training) of the students before and of this one."""
        before = [] if isinstance(self.teacher, str) else self.teacher.stages
        return [*before, (self.student_steps, self.steps)]

    @property
    def sampling(self) -> Sampling:
        """What the student is made for."""
        steps = self.student_steps
        return Sampling("ddim", "trailing", steps, (2 * steps,), self.original, self.guidance)


@dataclass(frozen=True, kw_only=True)
class ProgressiveRecipe(Student, Recipe):
    """A U-Net on pixels, in half as many DDIM steps as its teacher."""


@dataclass(frozen=True, kw_only=True)
class ConsistencyRecipe(Student, Recipe):
    """A consistency model on pixels of a teacher in few steps. levels: of the distillation, as many as the teacher's
    steps, see `fastdiff.train.losses.guided_consistency_loss`."""

    levels: int

    @property
    def sampling(self) -> Sampling:
        return Sampling("consistency", "trailing", 2, (1,), self.original, self.guidance)


@dataclass(frozen=True, kw_only=True)
class LatentProgressiveRecipe(Student, ClassRecipe):
    """A transformer on latents, in half as many DDIM steps as its teacher. The autoencoder is the bundled model's."""


@dataclass(frozen=True, kw_only=True)
class UpsamplerRecipe(Diffusion):
    """An upsampler from size / factor to size pixels. crop: pixels a side of the parts that it is trained on. augment:
    the latest time of the noise in the small pictures.

    Raises ValueError for a crop that does not fit the network or the pictures, and for a time out of [0, 1].
    """

    network: UpsamplerConfig
    crop: int
    augment: float

    def __post_init__(self) -> None:
        super().__post_init__()
        config = self.network
        multiple = math.lcm(config.factor, config.patch * 2 ** (len(config.channels) - 1))
        expect(
            0 < self.crop <= self.size and self.crop % multiple == self.size % multiple == 0,
            f"crop and size must be divisible by {multiple}, crop at most size, got {self.crop} and {self.size}",
        )
        expect(0 <= self.augment <= 1, f"augment must be a time in [0, 1], got {self.augment!r}")

    @property
    def small_size(self) -> int:
        """Pixels a side of the small pictures."""
        return self.size // self.network.factor


@dataclass(frozen=True, kw_only=True)
class ControlRecipe(Diffusion):
    """A ControlNet for edges. base: the bundled model that it controls, whose schedule and prediction it has.
    hint_widths: see `HintEncoder`."""

    base: str
    hint_widths: tuple[int, ...]


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

UNET = UNetConfig(
    channels=(64, 96, 144), blocks=1, attention_levels=(2,), head_channels=48, num_classes=9, positions=32
)
DIT = DiTConfig(input_size=16, hidden_size=192, depth=6, num_heads=6, num_classes=9, learn_sigma=False)


UNET_EIGHT = ProgressiveRecipe(
    name="emoji-unet-32-progressive-8",
    network=UNET,
    teacher="emoji-unet-32",
    guidance=2.0,
    student_steps=8,
    size=32,
    steps=200,
    batch=16,
    learning_rate=2e-4,
    warmup=50,
    ema_decay=0.99,
)
UNET_FOUR = replace(UNET_EIGHT, name="emoji-unet-32-progressive-4", teacher=UNET_EIGHT, student_steps=4)
DIT_EIGHT = LatentProgressiveRecipe(
    name="emoji-dit-64-progressive-8",
    autoencoder=AUTOENCODER,
    network=DIT,
    teacher="emoji-dit-64",
    guidance=3.0,
    student_steps=8,
    size=64,
    steps=500,
    batch=32,
    learning_rate=2e-4,
    warmup=100,
    ema_decay=0.995,
)

RECIPES: dict[str, EmojiRun] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="emoji-unet-32", network=UNET, size=32, steps=12_000, batch=32, learning_rate=6e-4),
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
            network=DIT,
            size=64,
            steps=16_000,
            batch=32,
            learning_rate=6e-4,
        ),
        UNET_EIGHT,
        UNET_FOUR,
        ConsistencyRecipe(
            name="emoji-unet-32-consistency",
            network=UNET,
            teacher=UNET_FOUR,
            guidance=2.0,
            student_steps=2,
            levels=4,
            size=32,
            steps=6_000,
            batch=16,
            learning_rate=3e-4,
            warmup=50,
            ema_decay=0.998,
        ),
        DIT_EIGHT,
        replace(DIT_EIGHT, name="emoji-dit-64-progressive", teacher=DIT_EIGHT, student_steps=4, steps=300),
        UpsamplerRecipe(
            name="emoji-sr-128",
            network=UpsamplerConfig(channels=(48, 96, 128), blocks=1),
            size=128,
            crop=64,
            augment=0.4,
            steps=8_000,
            batch=16,
            learning_rate=6e-4,
        ),
        ControlRecipe(
            name="emoji-control-edges",
            base="emoji-ldm-64",
            hint_widths=(16, 32, 64),
            size=64,
            steps=5_000,
            batch=16,
            learning_rate=5e-4,
            class_dropout=0.3,
        ),
    )
}
