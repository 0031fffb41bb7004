"""The models that bench_models.py times, by row: with random weights, as published in shape, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from engines import Plain
from torch import Tensor, nn

from fastdiff.bench.suites import ROW_NAMES
from fastdiff.models.imagen import ImagenConfig, ImagenUNet
from fastdiff.models.video_unet import Unet3D, Unet3DConfig

SIDES = {"small": (16, 24), "ddpm": (32, 48), "sd": (64, 96), "sdxl": (128, 96), "vae": (64, 48), "dit": (32, 48),
         "controlnet": (64, 96), "video": (32, 48), "imagen-base": (64, 48)}  # fmt: skip


class Controlled(nn.Module):
    """diffusers' U-Net with one ControlNet, as its pipeline calls them."""

    def __init__(self, unet: nn.Module, controlnet: nn.Module) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, hint: Tensor) -> Tensor:
        down, mid = self.controlnet(sample, timestep, encoder_hidden_states, hint, return_dict=False)
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]


def network(row: str) -> nn.Module:
    """The module of a row, without its weights."""
    import diffusers

    if row == "small":
        return diffusers.UNet2DModel(
            sample_size=16,
            block_out_channels=(32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
    if row == "ddpm":  # google/ddpm-cifar10-32
        return diffusers.UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
    if row == "sd":  # Stable Diffusion 1.5
        return diffusers.UNet2DConditionModel(cross_attention_dim=768)
    if row == "sdxl":  # Stable Diffusion XL 1.0
        return diffusers.UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    if row == "controlnet":  # Stable Diffusion 1.5 with one of its ControlNets
        return Controlled(diffusers.UNet2DConditionModel(cross_attention_dim=768), diffusers.ControlNetModel(
            cross_attention_dim=768))  # fmt: skip
    if row == "video":  # the example of video-diffusion-pytorch
        return Unet3D(Unet3DConfig(dim=64))
    if row == "imagen-base":  # imagen-pytorch's BaseUnet64 at half its width
        attended = (False, True, True, True)
        return ImagenUNet(ImagenConfig(
            dim=256, dim_mults=(1, 2, 3, 4), num_resnet_blocks=3, layer_attns=attended, layer_cross_attns=attended,
            attn_heads=8, ff_mult=2.0, memory_efficient=False))  # fmt: skip
    if row == "vae":
        return diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        ).decoder
    return diffusers.DiTTransformer2DModel(  # DiT-XL/2
        num_attention_heads=16,
        attention_head_dim=72,
        num_layers=28,
        sample_size=32,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )


def inputs_of(row: str, side: int) -> dict[str, Tensor]:
    """By name, for pictures or latents of that many pixels a side; float32 on the CPU."""
    torch.manual_seed(0)
    time, tokens = torch.full((2,), 500), (lambda width: torch.randn(2, 77, width))
    make: dict[str, Callable[[], dict[str, Tensor]]] = {
        "small": lambda: {"sample": torch.randn(2, 3, side, side), "timestep": time},
        "ddpm": lambda: {"sample": torch.randn(8, 3, side, side), "timestep": torch.full((8,), 500)},
        "sd": lambda: {"sample": torch.randn(2, 4, side, side), "timestep": time, "encoder_hidden_states": tokens(768)},
        "sdxl": lambda: {
            "sample": torch.randn(2, 4, side, side),
            "timestep": time,
            "encoder_hidden_states": tokens(2048),
            "text_embeds": torch.randn(2, 1280),
            "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2),
        },
        "controlnet": lambda: {
            "sample": torch.randn(2, 4, side, side),
            "timestep": time,
            "encoder_hidden_states": tokens(768),
            "hint": torch.rand(2, 3, 8 * side, 8 * side),
        },
        "video": lambda: {"x": torch.randn(1, 3, 8, side, side), "t": torch.full((1,), 500)},
        "imagen-base": lambda: {
            "x": torch.randn(1, 3, side, side),
            "t": torch.full((1,), 0.5),
            "text": torch.randn(1, 77, 768),
        },
        "vae": lambda: {"sample": torch.randn(1, 4, side, side)},
        "dit": lambda: {
            "hidden_states": torch.randn(2, 4, side, side),
            "timestep": torch.tensor([500, 500]),
            "class_labels": torch.tensor([1, 2]),
        },
    }
    return make[row]()


def placed(inputs: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The inputs on the device, those of floating point in the dtype."""
    return tuple(x.to(device, dtype if x.is_floating_point() else None) for x in inputs.values())


def build(
    row: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Plain, tuple[Tensor, ...]]:
    """The model of a row, with random weights that are the same in every dtype, and its inputs."""
    row, where = ROW_NAMES.get(row, row), torch.device(device)
    with torch.device("meta"):
        model = network(row)
    model = model.to_empty(device=where).eval().requires_grad_(False)
    generator = torch.Generator(where).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.uniform_(-1, 1, generator=generator).mul_((3 / parameter[0].numel()) ** 0.5)
        else:
            parameter.uniform_(-0.1, 0.1, generator=generator).add_("norm" in name and name.endswith("weight"))
    for buffer in model.buffers():
        buffer.uniform_(-1, 1, generator=generator)
    inputs: dict[str, Any] = inputs_of(row, SIDES[row][0])
    return Plain(model, tuple(inputs)).to(dtype).eval(), placed(inputs, where, dtype)


def other_inputs(row: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Those of another resolution."""
    row = ROW_NAMES.get(row, row)
    return placed(inputs_of(row, SIDES[row][1]), device, dtype)
