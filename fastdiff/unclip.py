"""unCLIP (Ramesh et al. 2022): from the CLIP embedding of a text to pictures, through the embedding of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.karlo import KarloDecoder
from fastdiff.models.prior import Prior
from fastdiff.models.unclip import UnCLIPDecoder
from fastdiff.models.unet_2d import UNet2D
from fastdiff.process.grids import make_grid
from fastdiff.process.noise import Seed, Seeds, fixed_seeds, seeds_for
from fastdiff.process.schedules import get_schedule
from fastdiff.sampling import sample
from fastdiff.solvers import get_solver

# Of each stage the options of `fastdiff.sample`: Karlo's schedule, ranges and scales of guidance.
PRIOR = {"schedule": "cosine", "prediction": "x0", "threshold": 10.0, "steps": 25, "guidance": 4.0}
DECODER = {"schedule": "cosine", "threshold": 1.0, "steps": 25, "guidance": 8.0}
UPSAMPLER = {"schedule": "cosine", "prediction": "eps", "threshold": 1.0, "steps": 7, "solver": "ddpm"}


class Text(NamedTuple):
    """What CLIP makes of a text: embedding (B, C), tokens (B, S, C), and mask (B, S), False for padding."""

    embedding: Tensor
    tokens: Tensor
    mask: Tensor


def text_to_pictures(
    prior: Prior,
    decoder: KarloDecoder | UnCLIPDecoder,
    text: Text,
    *,
    size: int = 64,
    null: Text | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    upsampler: nn.Module | Sequence[nn.Module] | None = None,
    upsampled: int = 256,
    seed: Seed = None,
    prior_options: Mapping[str, Any] | None = None,
    decoder_options: Mapping[str, Any] | None = None,
    upsampler_options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Pictures for texts: the prior draws an image embedding, the decoder a picture of it, the upsampler enlarges it.

    size: of the decoder's pictures. null: CLIP's of the empty text, one row or B, for guidance in the prior and the
        decoder; no guidance if not given. statistics: mean and deviation of the image embeddings, (C,) or (1, C), for a
        prior without them (Karlo has them in a file of their own).
    upsampler: a `KarloUNet` with super_res, or diffusers' `UNet2D`, or two of them, of which the second makes the last
        step. upsampled: the size that it makes.
    seed: as of `fastdiff.sample`; each stage has noise of its own. prior_options, decoder_options, upsampler_options:
        of `fastdiff.sample` for that stage (solver, steps, guidance, ...), in place of those in PRIOR, DECODER and
        UPSAMPLER of this module.

    Returns (B, 3, size, size), or (B, 3, upsampled, upsampled), in [-1, 1] but for what the solver's last step adds.
    Raises ValueError where arguments do not fit.
    """
    batch = len(text.embedding)
    seeds = fixed_seeds(seed, batch)
    none = None if null is None else Text(*(value.expand(batch, *value.shape[1:]) for value in null))
    embedding = image_embeddings(
        prior, text, null=none, statistics=statistics, seed=seeds, **{**PRIOR, **(prior_options or {})}
    )
    config = decoder.unet.config if isinstance(decoder, UnCLIPDecoder) else decoder.config
    variance = config.out_channels == 2 * config.in_channels
    options = {**DECODER, "prediction": "eps+variance" if variance else "eps", **(decoder_options or {})}
    nothing = None
    if none is not None:
        nothing = _decoder_arguments(decoder.conditioning.images(None, batch), none)
    pictures = sample(
        decoder,
        (batch, config.in_channels, size, size),
        cond=_decoder_arguments(embedding, text),
        seed=seeds_for(seeds, 1),
        **_guided(options, nothing),
    )
    if upsampler is None:
        return pictures
    networks = [upsampler] if isinstance(upsampler, nn.Module) else list(upsampler)
    return _upsample(networks, pictures, upsampled, seeds_for(seeds, 2), {**UPSAMPLER, **(upsampler_options or {})})


def image_embeddings(
    prior: Prior,
    text: Text,
    *,
    null: Text | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    seed: Seed = None,
    **options: Any,
) -> Tensor:
    """Image embeddings (B, C) that the prior draws for texts. null, statistics: as of `text_to_pictures`. options: of
    `fastdiff.sample`; PRIOR of this module has Karlo's."""
    batch = len(text.embedding)
    drawn = sample(
        prior,
        (batch, prior.config.embedding_dim),
        cond=_prior_arguments(text),
        seed=seed,
        **_guided(options, None if null is None else _prior_arguments(null)),
    )
    if statistics is None:
        return prior.denormalise(drawn)
    mean, std = (value.to(drawn) for value in statistics)
    return drawn * std + mean


def _prior_arguments(text: Text) -> dict[str, Tensor]:
    return {"embedding": text.embedding, "text": text.tokens, "mask": text.mask}


def _decoder_arguments(image: Tensor, text: Text) -> dict[str, Tensor]:
    return {"image": image, "text": text.embedding, "tokens": text.tokens, "mask": text.mask}


def _guided(options: Mapping[str, Any], uncond: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """The options with the unconditional arguments, or without guidance where there are none."""
    if uncond is None:
        return {name: value for name, value in options.items() if name != "guidance"}
    return {**options, "uncond": uncond}


def _upsample(
    networks: Sequence[nn.Module], pictures: Tensor, size: int, seed: Seeds, options: dict[str, Any]
) -> Tensor:
    """By one network, or by two of which the second makes the last step (Karlo's)."""
    expect(len(networks) in (1, 2), f"upsampler must be one network or two, got {len(networks)}")
    networks = [_Beside(network) if isinstance(network, UNet2D) else network for network in networks]
    low_res = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True, align_corners=False)
    cond = {"low_res": low_res}
    if len(networks) == 1:
        return sample(networks[0], low_res.shape, cond=cond, seed=seed, **options)
    schedule, method = get_schedule(options["schedule"]), get_solver(options["solver"])
    steps, grid = options.pop("steps"), options.pop("grid", None)
    times = make_grid(grid if grid is not None else schedule.grid or method.grid, schedule, steps)
    expect(len(times) > 2, f"steps of two networks must be at least 2, got {steps}")
    state = sample(networks[0], low_res.shape, cond=cond, seed=seed, grid=times[:-1], **options)
    return sample(networks[1], state, cond=cond, seed=seeds_for(seed, 1), grid=times[-2:], **options)


class _Beside(nn.Module):
    """A network whose input is x and the small picture, as diffusers has Karlo's super-resolution."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, *, low_res: Tensor) -> Tensor:
        return self.network(torch.cat([x, low_res], dim=1), t)
