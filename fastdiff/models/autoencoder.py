"""The autoencoders of latent diffusion (Rombach et al. 2022, Section 3.1; after Esser et al. 2021, VQGAN): a small KL
penalty, or a codebook."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect, unknown
from fastdiff.models.parts.backbone import Stage
from fastdiff.models.parts.blocks import AttentionBlock, Downsample, GroupNorm, Norm, ResBlock, Upsample, conv_nd

ATTENTION_TYPES = ("vanilla", "vanilla-xformers", "linear", "none")


@dataclass(frozen=True)
class AutoencoderConfig:
    """The arguments of latent-diffusion's `Encoder` and `Decoder` (ddconfig) and of the autoencoder around them.

    ch: features at full resolution, times ch_mult at each level. attn_resolutions: pixels a side where blocks are
    followed by attention, for pictures of `resolution`. double_z: the encoder gives mean and log-variance. embed_dim:
    channels of the latents, z_channels inside if not given. n_embed: entries of the codebook; None for the KL form.
    norm_groups, mid_attention, quant_convs (1 x 1 convolutions after the encoder and before the decoder): the
    originals have 32, True and both. patch: pixels a side that are one pixel of patch^2 times the channels to the
    network, which saves the convolutions at full resolution; the originals have 1.
    """

    ch: int
    out_ch: int
    in_channels: int
    z_channels: int
    num_res_blocks: int
    resolution: int = 256
    ch_mult: tuple[float, ...] = (1, 2, 4, 8)
    attn_resolutions: tuple[int, ...] = ()
    dropout: float = 0.0
    resamp_with_conv: bool = True
    double_z: bool = True
    use_linear_attn: bool = False
    attn_type: str = "vanilla"
    give_pre_end: bool = False
    tanh_out: bool = False
    embed_dim: int | None = None
    n_embed: int | None = None
    norm_groups: int = 32
    mid_attention: bool = True
    quant_convs: tuple[bool, bool] = (True, True)
    patch: int = 1

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level."""
        return tuple(round(self.ch * mult) for mult in self.ch_mult)

    @property
    def factor(self) -> int:
        """Pixels a side that become one of the latents."""
        return self.patch * 2 ** (len(self.ch_mult) - 1)

    def norm(self, channels: int) -> GroupNorm:
        """The norm of all layers."""
        return GroupNorm(self.norm_groups, channels, eps=1e-6)

    def block(self, in_channels: int, out_channels: int) -> ResBlock:
        """A residual block without a time."""
        return ResBlock(in_channels, out_channels, None, norm=self.norm, dropout=self.dropout)

    def stage(self, in_channels: int, out_channels: int, level: int) -> Stage:
        """A residual block, and attention where the level has it."""
        layers: list[nn.Module] = [self.block(in_channels, out_channels)]
        if self.resolution >> level in self.attn_resolutions:
            layers.append(self.attention(out_channels))
        return Stage(layers)

    def middle(self, channels: int) -> Stage:
        """The blocks at the lowest resolution."""
        between = [self.attention(channels)] if self.mid_attention else []
        return Stage([self.block(channels, channels), *between, self.block(channels, channels)])

    def attention(self, channels: int) -> nn.Module:
        """Of the configured type."""
        return make_attention(channels, "linear" if self.use_linear_attn else self.attn_type, self.norm)


def make_attention(channels: int, attn_type: str, norm: Norm) -> nn.Module:
    """Attention with one head, "vanilla" or "linear", or "none"."""
    if attn_type not in ATTENTION_TYPES:
        raise unknown("attn_type", attn_type, ATTENTION_TYPES)
    if attn_type == "none":
        return nn.Identity()
    return LinearAttention(channels) if attn_type == "linear" else AttentionBlock(channels, 1, norm=norm)


class LinearAttention(nn.Module):
    """Attention without the softmax over queries and keys, and without norm and residual (Katharopoulos et al. 2020;
    Shen et al. 2021, Eq. 4, with the softmax over the keys alone): (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, dim=1)  # (B, C, S)
        summary = v @ k.softmax(-1).transpose(1, 2)  # (B, C of v, C of k)
        return self.proj((summary @ q).reshape(x.shape))


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, z_channels, h, w), twice the channels with double_z; h = H / config.factor."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.channels
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, config.ch, 3, padding=1)
        self.down, width = nn.ModuleList(), config.ch
        for level, out_channels in enumerate(channels):
            for _ in range(config.num_res_blocks):
                self.down.append(config.stage(width, out_channels, level))
                width = out_channels
            if level < len(channels) - 1:
                self.down.append(Stage([Downsample(width, conv=config.resamp_with_conv, padding=0)]))
        self.middle = config.middle(width)
        self.norm_out = config.norm(width)
        self.conv_out = nn.Conv2d(width, config.z_channels * (2 if config.double_z else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        for stage in self.down:
            h = stage(h)
        return self.conv_out(self.norm_out(self.middle(h), activation="silu"))


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, out_ch, H, W); with give_pre_end, the features before the last norm."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        width = channels[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.middle = config.middle(width)
        self.up = nn.ModuleList()
        for level in reversed(range(len(channels))):
            for index in range(config.num_res_blocks + 1):
                stage = config.stage(width, channels[level], level)
                width = channels[level]
                if level > 0 and index == config.num_res_blocks:
                    stage.append(Upsample(width, conv=config.resamp_with_conv))
                self.up.append(stage)
        self.norm_out = config.norm(width)
        self.conv_out = nn.Conv2d(width, config.out_ch * config.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.conv_in(z))
        for stage in self.up:
            h = stage(h)
        if self.config.give_pre_end:
            return h
        h = self.conv_out(self.norm_out(h, activation="silu"))
        h = F.pixel_shuffle(h, self.config.patch) if self.config.patch > 1 else h
        return h.tanh() if self.config.tanh_out else h


@dataclass(frozen=True)
class Posterior:
    """Independent normal distributions of the latents, (B, C, h, w) each."""

    moments: Tensor

    @property
    def mean(self) -> Tensor:
        """The most probable latents."""
        return self.moments.chunk(2, dim=1)[0]

    @property
    def log_variance(self) -> Tensor:
        """Kept in [-30, 20], so that its exponential is a number."""
        return self.moments.chunk(2, dim=1)[1].clamp(-30.0, 20.0)

    def sample(self, noise: Tensor) -> Tensor:
        """A draw. noise: standard normal, in the mean's shape."""
        return self.mean + (0.5 * self.log_variance).exp() * noise


class Autoencoder(nn.Module):
    """What both kinds share: encoder, decoder, and the linear maps of each pixel between them and the latents."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.embed_dim or config.z_channels
        before, after = config.quant_convs
        moments = 2 if config.double_z else 1
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        conv = partial(conv_nd, 2, kernel=1)
        self.quant_conv = (
            conv(in_channels=moments * config.z_channels, out_channels=moments * latent) if before else nn.Identity()
        )
        self.post_quant_conv = conv(in_channels=latent, out_channels=config.z_channels) if after else nn.Identity()

    def _encode(self, x: Tensor) -> Tensor:
        factor = self.config.factor
        expect(
            x.ndim == 4 and x.shape[1] == self.config.in_channels and x.shape[2] % factor == x.shape[3] % factor == 0,
            f"x must be (B, {self.config.in_channels}, H, W) with H and W divisible by {factor}, got {tuple(x.shape)}",
        )
        return self.quant_conv(self.encoder(x))

    def _check(self, z: Tensor) -> None:
        channels = self.config.embed_dim or self.config.z_channels
        expect(z.ndim == 4 and z.shape[1] == channels, f"z must be (B, {channels}, h, w), got {tuple(z.shape)}")

    def _decode(self, z: Tensor) -> Tensor:
        self._check(z)
        return self.decoder(self.post_quant_conv(z))


class AutoencoderKL(Autoencoder):
    """Autoencoder with normal latents: `encode(x)` -> Posterior, `decode(z)` -> pictures.

    x: (B, in_channels, H, W) in [-1, 1]. z: (B, embed_dim, h, w). `model(x)` is decode(encode(x).mean).
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        expect(config.double_z, "an AutoencoderKL needs double_z")
        super().__init__(config)

    def encode(self, x: Tensor) -> Posterior:
        return Posterior(self._encode(x))

    def decode(self, z: Tensor) -> Tensor:
        return self._decode(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x).mean)


class AutoencoderVQ(Autoencoder):
    """Autoencoder with latents from a codebook: `encode(x)` -> latents before quantisation, `decode(z)` -> pictures.

    x: (B, in_channels, H, W) in [-1, 1]. z: (B, embed_dim, h, w), quantised first unless quantize=False. Diffusion runs
    on the latents before quantisation (Rombach et al. 2022, Section 3.1). `model(x)` is decode(encode(x)).
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        expect(not config.double_z, "an AutoencoderVQ has no double_z")
        if config.n_embed is None:
            raise ValueError("an AutoencoderVQ needs n_embed")
        super().__init__(config)
        self.quantize = VectorQuantizer(config.n_embed, config.embed_dim or config.z_channels)

    def encode(self, x: Tensor) -> Tensor:
        return self._encode(x)

    def decode(self, z: Tensor, *, quantize: bool = True) -> Tensor:
        self._check(z)
        return self._decode(self.quantize(z)[0] if quantize else z)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Pictures from codes (B, h, w) int64."""
        return self._decode(self.quantize.lookup(indices))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class VectorQuantizer(nn.Module):
    """The nearest entry of a codebook (van den Oord et al. 2017, VQ-VAE, Eq. 2): `quantize(z)` -> (entries, indices).

    z: (B, channels, h, w); entries of the same shape, with z's gradient; indices: (B, h, w) int64.
    """

    def __init__(self, entries: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, channels)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        rows = z.movedim(1, -1)  # (B, h, w, C)
        flat, codebook = rows.reshape(-1, rows.shape[-1]), self.embedding.weight
        # |z - e|^2 but for |z|^2, which is the same for all entries
        distances = torch.addmm(codebook.square().sum(1), flat, codebook.t(), alpha=-2)
        indices = distances.argmin(1).reshape(rows.shape[:-1])
        return z + (self.lookup(indices) - z).detach(), indices

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, channels, h, w)."""
        return F.embedding(indices, self.embedding.weight).movedim(-1, 1).contiguous()
