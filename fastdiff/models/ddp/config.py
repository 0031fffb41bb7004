"""What the U-Nets of denoising-diffusion-pytorch are made with, by the names of the original constructors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastdiff.errors import expect


@dataclass(frozen=True)
class Shared:
    """The arguments that all three have.

    dim: channels of the first level; those of the others are dim times dim_mults. init_dim: of the first convolution's
    result; dim if None. out_dim: of the network's result; channels if None, twice as many with learned_variance.
    learned_sinusoidal_cond, random_fourier_features: learned_sinusoidal_dim features of the time with frequencies that
    are learned, or drawn and kept, in place of fixed ones. attn_heads, attn_dim_head: of the attention.
    """

    dim: int
    init_dim: int | None = None
    out_dim: int | None = None
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    channels: int = 3
    learned_variance: bool = False
    learned_sinusoidal_cond: bool = False
    random_fourier_features: bool = False
    learned_sinusoidal_dim: int = 16

    def __post_init__(self) -> None:
        if self.has_learned_times:
            dim, name = self.learned_sinusoidal_dim, "learned_sinusoidal_dim"
            expect(dim > 0 and dim % 2 == 0, f"{name} must be even and positive, got {dim}")
        else:
            expect(self.dim % 2 == 0 and self.dim > 2, f"dim must be even and more than 2, got {self.dim}")

    @property
    def has_learned_times(self) -> bool:
        """Whether the frequencies of the time are in the checkpoint."""
        return self.learned_sinusoidal_cond or self.random_fourier_features

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the first convolution's result, and of what each level hands down."""
        return (self.init_dim or self.dim, *(self.dim * multiple for multiple in self.dim_mults))

    @property
    def out_channels(self) -> int:
        """Of the network's result."""
        return self.out_dim or self.channels * (1 + self.learned_variance)


@dataclass(frozen=True)
class UnetConfig(Shared):
    """The arguments of `Unet`.

    self_condition: the network also sees an earlier estimate of the picture. sinusoidal_pos_emb_theta: the longest
    period of the features of the time, over 2 pi. full_attn: levels whose attention is not linear; the last alone if
    None. attn_heads, attn_dim_head, full_attn: one number, or one a level; the middle's are those of the last level.
    flash_attn: has no effect.
    """

    self_condition: bool = False
    sinusoidal_pos_emb_theta: float = 10_000
    dropout: float = 0.0
    attn_dim_head: int | tuple[int, ...] = 32
    attn_heads: int | tuple[int, ...] = 4
    full_attn: bool | tuple[bool, ...] | None = None
    flash_attn: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("attn_dim_head", "attn_heads", "full_attn"):
            given, levels = getattr(self, field), len(self.dim_mults)
            fits = not isinstance(given, tuple) or len(given) == levels or given == ()
            expect(fits, f"{field} must be one, or {levels}, one a level, got {given!r}")

    @property
    def heads(self) -> tuple[int, ...]:
        """Of the attention of each level."""
        return per_level(self.attn_heads, len(self.dim_mults))

    @property
    def head_channels(self) -> tuple[int, ...]:
        """Of the attention of each level."""
        return per_level(self.attn_dim_head, len(self.dim_mults))

    @property
    def attends_fully(self) -> tuple[bool, ...]:
        """Whether the attention of each level is not linear."""
        return full_levels(self.full_attn, len(self.dim_mults))


@dataclass(frozen=True)
class Unet1DConfig(Shared):
    """The arguments of `Unet1D`: as of `Unet`, but that attn_heads and attn_dim_head are the middle's alone."""

    dropout: float = 0.0
    self_condition: bool = False
    sinusoidal_pos_emb_theta: float = 10_000
    attn_dim_head: int = 32
    attn_heads: int = 4


@dataclass(frozen=True, kw_only=True)
class ClassUnetConfig(Shared):
    """The arguments of `Unet` in classifier_free_guidance: as of `Unet1D`.

    num_classes: how many there are. cond_drop_prob: how often a class is left out in training.
    """

    num_classes: int
    cond_drop_prob: float = 0.5
    attn_dim_head: int = 32
    attn_heads: int = 4


def per_level(value: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """One a level, of what may be one for all."""
    return (value,) * levels if isinstance(value, int) else tuple(value)


def full_levels(value: bool | Sequence[bool] | None, levels: int) -> tuple[bool, ...]:
    """full_attn, one a level: nothing and False mean the last alone."""
    if not value:
        return (*(False,) * (levels - 1), True)
    return (True,) * levels if isinstance(value, bool) else tuple(value)
