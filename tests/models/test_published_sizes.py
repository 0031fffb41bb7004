"""Parameters and multiply-adds of published models, built without values, against the figures of their papers."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.models.checkpoints.loading import layouts, on_meta
from fastdiff.models.dit import BLOCKS, DiT, DiTConfig
from fastdiff.models.parts.counting import multiply_adds, parameters
from fastdiff.models.sit import SiT

# Counters differ in what else they count beside products (norms, activations, biases): 0.1 % at the most here.
ELEMENTWISE = 1e-3


@dataclass
class Published:
    """parameters in millions and multiply-adds in billions as strings: as many digits as the source gives.

    inputs: shapes of the arguments of a call.
    """

    name: str
    source: str
    layout: str
    config: dict[str, Any]
    parameters: str
    giga: str | None = None
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)


def near(value, printed, relative=0.0):
    """Whether value would be printed so, but for a relative difference."""
    digits = len(printed.partition(".")[2])
    return abs(value - float(printed)) <= 0.5 * 10.0**-digits + relative * value


def inputs_of(shapes):
    whole = {"y"}  # classes
    return {
        name: torch.empty(shape, device="meta", dtype=torch.int64 if name in whole and len(shape) == 1 else None)
        for name, shape in shapes.items()
    }


# ---- DiT: Peebles & Xie 2023, Table 4 ("Details of DiT models"): Flops (G), Params (M) -------------------------------

DIT = {
    "DiT-S/8": ("33", "0.36"), "DiT-S/4": ("33", "1.41"), "DiT-S/2": ("33", "6.06"),
    "DiT-B/8": ("131", "1.42"), "DiT-B/4": ("130", "5.56"), "DiT-B/2": ("130", "23.01"),
    "DiT-L/8": ("459", "5.01"), "DiT-L/4": ("458", "19.70"), "DiT-L/2": ("458", "80.71"),
    "DiT-XL/8": ("676", "7.39"), "DiT-XL/4": ("675", "29.05"), "DiT-XL/2": ("675", "118.64"),
}  # fmt: skip
DIT_512 = ("675", "524.60")  # DiT-XL/2 at 512 x 512
DIT_BLOCKS = {  # DiT-XL/2, the same table
    "adaln-zero": ("675", "118.64"),
    "adaln": ("600", "118.56"),
    "cross-attention": ("598", "137.62"),
    "in-context": ("449", "119.37"),
}


SIT = {"SiT-S/2": "33", "SiT-B/2": "130", "SiT-L/2": "458", "SiT-XL/2": "675"}


def dit_cases():
    for name, figures in DIT.items():
        config = DiTConfig.of(name)
        yield name, config, figures
        if name == "DiT-XL/2":
            yield f"{name} at 512", DiTConfig.of(name, input_size=64), DIT_512
    assert DIT_BLOCKS.keys() == set(BLOCKS)
    for block, figures in DIT_BLOCKS.items():
        yield f"DiT-XL/2 {block}", DiTConfig.of("DiT-XL/2", block=block), figures


@pytest.mark.parametrize(("name", "config", "figures"), [pytest.param(*case, id=case[0]) for case in dit_cases()])
def test_dit(name, config, figures):
    with torch.device("meta"):
        model = DiT(config).to("meta")
    size = config.input_size
    inputs = inputs_of({"x": (1, 4, size, size), "t": (1,), "y": (1,)})
    millions, giga = figures
    assert near(parameters(model) / 1e6, millions)
    assert near(multiply_adds(model, **inputs) / 1e9, giga, ELEMENTWISE)


@pytest.mark.parametrize("name", SIT)
def test_sit(name):
    """Ma et al. 2024, SiT, abstract: as many parameters as DiT."""
    config = DiTConfig.of(name.replace("SiT", "DiT"))
    with torch.device("meta"):
        model = SiT(config).to("meta")
    assert near(parameters(model) / 1e6, SIT[name])


# ---- models that are built through their layouts --------------------------------------------------------------------


def adm(size, channels, **changes):
    """The flags of guided-diffusion's README, as its script_util makes constructor arguments of them."""
    return {
        "image_size": size, "in_channels": 3, "model_channels": channels, "out_channels": 6, "num_res_blocks": 2,
        "attention_resolutions": tuple(size // n for n in (32, 16, 8)), "num_classes": 1000, "num_head_channels": 64,
        "use_scale_shift_norm": True, "resblock_updown": True, **changes,
    }  # fmt: skip


ADM = "Dhariwal & Nichol 2021, ADM, hyperparameters in the appendix"
DIT_TABLE = "; multiply-adds: Peebles & Xie 2023, Section 5.1"
SD = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": (4, 2, 1),
    "num_res_blocks": 2, "channel_mult": (1, 2, 4, 4), "num_heads": 8, "use_spatial_transformer": True,
    "transformer_depth": 1, "context_dim": 768, "legacy": False,
}  # fmt: skip
COUNTED = "the published weights, counted in forums.fast.ai/t/stable-diffusion-parameter-budget-allocation/101515"
# The 103.6 of Peebles & Xie 2023 is not what the products of CompVis's code add up to: docs/notes/models.md.
LDM = "Rombach et al. 2022, Table 3 (400M); CompVis's code: 400.92M when it starts, products as fvcore counts them"
# Its names of the files say 1B, 900M, and 1.4B for the two networks of the super-resolution; no paper prints more.
KARLO = "counted of kakaobrain/karlo's classes with the configurations that go with the weights"
# The sizes of Saharia et al. 2022 (2 billion, 600M, 400M) are those of other networks than imagen-pytorch's defaults.
IMAGEN = "counted of imagen-pytorch's class with the defaults of its subclass, and texts of 768 channels"
SUPER_RESOLUTION = {
    "dim": 128, "dim_mults": (1, 2, 4, 8), "num_resnet_blocks": (2, 4, 8, 8), "memory_efficient": True,
    "layer_attns": (False, False, False, True), "layer_cross_attns": (False, False, False, True), "lowres_cond": True,
}  # fmt: skip
PUBLISHED = [
    Published("Imagen's base, BaseUnet64", IMAGEN, "imagen",
              {"dim": 512, "dim_mults": (1, 2, 3, 4), "num_resnet_blocks": 3,
               "layer_attns": (False, True, True, True), "layer_cross_attns": (False, True, True, True)}, "1625.742"),
    Published("Imagen's SRUnet256", IMAGEN, "imagen", SUPER_RESOLUTION, "732.037"),
    Published("Imagen's SRUnet1024", IMAGEN, "imagen", {**SUPER_RESOLUTION, "layer_attns": False}, "721.245"),
    Published("Karlo's prior", KARLO, "karlo",
              {"text_ctx": 77, "xf_width": 2048, "xf_layers": 20, "xf_heads": 32, "xf_final_ln": True,
               "clip_dim": 768}, "1022.029"),
    Published("Karlo's prior, diffusers", "counted of diffusers' class with its defaults", "diffusers",
              {"_class_name": "PriorTransformer"}, "1022.030"),
    Published("Karlo's decoder", KARLO, "karlo",
              {"text_ctx": 77, "xf_width": 1536, "in_channels": 3, "model_channels": 320, "out_channels": 6,
               "num_res_blocks": 3, "attention_resolutions": (2, 4, 8), "channel_mult": (1, 2, 3, 4), "num_heads": -1,
               "num_head_channels": 64, "use_scale_shift_norm": True, "dropout": 0.1, "clip_dim": 768,
               "clip_emb_mult": 4, "resblock_updown": True, "clip_emb_drop": 0.1}, "893.318"),
    Published("Karlo's super-resolution, one of two", KARLO, "karlo",
              {"in_channels": 3, "model_channels": 320, "out_channels": 3, "num_res_blocks": 3,
               "attention_resolutions": (), "channel_mult": (1, 2, 3, 4), "resblock_updown": True,
               "use_middle_attention": False, "super_res": True}, "691.580"),
    Published("DDPM CIFAR-10", "Ho et al. 2020, Appendix B", "latent-diffusion",
              {"ch": 128, "out_ch": 3, "in_channels": 3, "num_res_blocks": 2, "attn_resolutions": (16,),
               "resolution": 32, "ch_mult": (1, 2, 2, 2)}, "35.7"),
    Published("ADM 64", ADM, "guided-diffusion",
              adm(64, 192, num_res_blocks=3, channel_mult=(1, 2, 3, 4), use_new_attention_order=True), "296"),
    Published("ADM 128", ADM, "guided-diffusion",
              adm(128, 256, channel_mult=(1, 1, 2, 3, 4), num_heads=4, num_head_channels=-1), "422"),
    Published("ADM 256", ADM + DIT_TABLE, "guided-diffusion", adm(256, 256, channel_mult=(1, 1, 2, 2, 4, 4)),
              "554", "1120", {"x": (1, 3, 256, 256), "t": (1,), "y": (1,)}),
    Published("ADM 512", ADM + DIT_TABLE, "guided-diffusion", adm(512, 256, channel_mult=(0.5, 1, 1, 2, 2, 4, 4)),
              "559", "1983", {"x": (1, 3, 512, 512), "t": (1,), "y": (1,)}),
    Published("LDM-4 ImageNet", LDM, "latent-diffusion",
              {"image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 192,
               "attention_resolutions": (8, 4, 2), "num_res_blocks": 2, "channel_mult": (1, 2, 3, 5), "num_heads": 1,
               "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 512}, "400.92", "104.227",
              {"x": (1, 3, 64, 64), "t": (1,), "context": (1, 1, 512)}),
    Published("Stable Diffusion 1.5, U-Net", COUNTED, "latent-diffusion", SD, "859.520964"),
    Published("ControlNet of Stable Diffusion 1.5", "the published weights: files of 1.45 GB in float32", "controlnet",
              {**{field: value for field, value in SD.items() if field != "out_channels"}, "hint_channels": 3},
              "361.28"),
    Published("Palette", "unconfirmed (Saharia et al. 2022 are quoted with 552M): ADM 256 without classes and variance",
              "palette",
              {"in_channel": 6, "out_channel": 3, "inner_channel": 256, "channel_mults": (1, 1, 2, 2, 4, 4),
               "attn_res": (8, 16, 32), "num_head_channels": 64, "res_blocks": 2}, "552.8"),
    # Saharia et al. 2021 are quoted with 550M and 625M, of BigGAN's residual blocks and resampling.
    Published("SR3 16 -> 128", "unconfirmed: Janspiry's code, as counted here", "sr3",
              {"inner_channel": 128, "attn_res": (16,), "image_size": 128}, "514.99"),
    Published("SR3 64 -> 512", "unconfirmed: Janspiry's code, as counted here", "sr3",
              {"inner_channel": 64, "channel_mults": (1, 2, 4, 8, 8, 16, 16), "attn_res": (16,), "image_size": 512},
              "563.78"),
    Published("SDM ADE20K 256", "unconfirmed: the authors' code and flags, as counted here", "sdm",
              adm(256, 256, channel_mult=(1, 1, 2, 2, 4, 4), num_classes=151), "660.61"),
    Published("Stable Diffusion 1.5, VAE", COUNTED, "latent-diffusion",
              {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
               "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attn_resolutions": (), "embed_dim": 4}, "83.653863"),
    Published("Stable Diffusion XL, U-Net", "the published weights; Podell et al. 2023, Table 1: 2.6 billion",
              "latent-diffusion",
              {**SD, "attention_resolutions": (4, 2), "channel_mult": (1, 2, 4), "num_heads": -1,
               "num_head_channels": 64, "use_linear_in_transformer": True, "transformer_depth": (1, 2, 10),
               "context_dim": 2048, "num_classes": "sequential", "adm_in_channels": 2816}, "2567.5"),
]  # fmt: skip


def uvit(width, depth, heads, **changes):
    """The files of U-ViT's folder configs."""
    return {"img_size": 32, "patch_size": 2, "in_chans": 4, "embed_dim": width, "depth": depth, "num_heads": heads,
            "mlp_ratio": 4, "num_classes": 1001, **changes}  # fmt: skip


DDP = "unconfirmed: denoising-diffusion-pytorch's class with the arguments of its README, as counted here"
PUBLISHED += [
    Published("denoising-diffusion-pytorch, U-Net", DDP, "ddp", {"dim": 64}, "35.71"),
    Published("KarrasUnet, config G of EDM2", DDP, "ddp", {"image_size": 64, "num_classes": 1000}, "431.51"),
]

OTHER_DATA = "unconfirmed: the original's class with its defaults, as counted here"
PUBLISHED += [
    Published("TimeGrad, 370 series", OTHER_DATA, "timegrad", {"target_dim": 370, "cond_length": 100}, "0.1028"),
    Published("Decision Diffuser", OTHER_DATA, "decision-diffuser",
              {"horizon": 100, "transition_dim": 11, "cond_dim": 11, "returns_condition": True}, "64.20"),
    Published("music transformer", OTHER_DATA, "symbolic-music", {"data_channels": 42}, "25.58"),
]  # fmt: skip


UVIT = "Bao et al. 2023, U-ViT, Table 1; written from memory and not found on a page again"
PUBLISHED += [
    Published("U-ViT-S/2 CIFAR-10", UVIT, "u-vit", uvit(512, 12, 8, in_chans=3, num_classes=-1), "44"),
    Published("U-ViT-M/4", UVIT, "u-vit",
              uvit(768, 16, 12, img_size=64, patch_size=4, in_chans=3, num_classes=1000), "131"),
    Published("U-ViT-L/2", UVIT, "u-vit", uvit(1024, 20, 16), "287"),
    Published("U-ViT-H/2", UVIT, "u-vit", uvit(1152, 28, 16, conv=False), "501"),
    Published("ModelScope text to video, U-Net", "counted here, not confirmed; 1.7 billion with the rest",
              "diffusers", {"_class_name": "UNet3DConditionModel"}, "1411.2"),
    Published("U-ViT-S/2 COCO", UVIT, "u-vit", uvit(512, 12, 8, num_classes=-1, clip_dim=768, num_clip_token=77), "45"),
]  # fmt: skip


@pytest.mark.parametrize("model", [pytest.param(row, id=row.name) for row in PUBLISHED])
def test_others(model):
    built = on_meta(model.layout, model.config)
    assert near(parameters(built) / 1e6, model.parameters)
    if model.giga is not None:
        assert near(multiply_adds(built, **inputs_of(model.inputs)) / 1e9, model.giga, ELEMENTWISE)


@pytest.mark.parametrize(("middle", "motion"), [(False, "417"), (True, "453")])
def test_animatediff(middle, motion):
    """The motion modules for Stable Diffusion 1.5, as AnimateDiff's README gives them; the rest is its U-Net."""
    config = {"_class_name": "UNetMotionModel", "cross_attention_dim": 768, "use_motion_mid_block": middle}
    model = on_meta("diffusers", config)
    over_frames = sum(value.numel() for name, value in model.named_parameters() if ".time." in name)
    assert near(over_frames / 1e6, motion)
    assert near((parameters(model) - over_frames) / 1e6, "859.520964")


# ---- the counter itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_counted_does_not_depend_on_what_runs(backend):
    """Where attention is one of fastdiff's kernels, or torch's fused one, the count is that of its products."""
    config = DiTConfig(input_size=8, hidden_size=48, depth=2, num_heads=4, num_classes=5, block="cross-attention")
    model = DiT(config).eval()
    x, t, y = torch.randn(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    with fastdiff.use(backend):
        real = multiply_adds(model, x, t, y)
    assert real == multiply_adds(model.to("meta"), x.to("meta"), t.to("meta"), y.to("meta"))
    c, tokens, condition = 48, 16, 2
    block = tokens * (4 * c * c + 8 * c * c + 2 * c * c) + condition * 2 * c * c + 2 * c * tokens * (tokens + condition)
    time, patches, result = 256 * c + c * c, tokens * c * 4 * 4, tokens * c * 4 * 8
    assert real == 2 * (time + patches + 2 * block + result)


def test_small_products():
    x, w = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    assert multiply_adds(torch.nn.functional.conv2d, x, w, padding=1) == 2 * 64 * 5 * 27
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 10, 8), torch.randn(2, 4, 10, 16)
    assert multiply_adds(fastdiff.ops.attention, q, k, v) == 2 * 4 * 6 * 10 * (8 + 16)


def test_every_layout_that_is_counted_is_known():
    assert {row.layout for row in PUBLISHED} <= layouts().keys()
