"""The model families: every parameter takes part, samples do not mix, backends agree, bad input is refused."""

import pytest
import torch
from conftest import relative_error
from families_imagen import IMAGEN
from families_imagen import REFUSED as REFUSED_IMAGEN
from families_imagen import UNUSED as UNUSED_IMAGEN
from families_lucidrains import DDP
from families_lucidrains import REFUSED as REFUSED_DDP
from families_lucidrains import REFUSED_CONFIGS as REFUSED_DDP_CONFIGS
from families_other_data import OTHER_DATA
from families_other_data import REFUSED as REFUSED_OTHER_DATA
from families_other_data import REFUSED_CONFIGS as REFUSED_OTHER_DATA_CONFIGS
from families_unclip import REFUSED, UNCLIP, UNUSED

import fastdiff
from fastdiff.models.adm import ADM, POOLS, ADMClassifier, ADMClassifierConfig, ADMConfig, ADMSuperResolution
from fastdiff.models.autoencoder import AutoencoderConfig, AutoencoderKL, AutoencoderVQ, VectorQuantizer
from fastdiff.models.controlnet import ControlledUNet, ControlNet, ControlNetConfig
from fastdiff.models.ddpm import DDPM, DDPMConfig
from fastdiff.models.dit import DiTConfig
from fastdiff.models.edm import PRECONDITIONINGS, DhariwalConfig, DhariwalUNet, EDMPrecond, SongConfig, SongUNet
from fastdiff.models.glide import GLIDE, GLIDEConfig
from fastdiff.models.ldm import ClassEmbedder, LatentDiffusion, LDMConfig, LDMUNet, size_vector
from fastdiff.models.palette import Palette, PaletteConfig
from fastdiff.models.sdm import SDM, SDMConfig
from fastdiff.models.sit import SiT
from fastdiff.models.sr3 import SR3Config, SR3UNet
from fastdiff.models.unet_3d_condition import UNet3DCondition, UNet3DConditionConfig
from fastdiff.models.unet_motion import UNetMotion, UNetMotionConfig
from fastdiff.models.uvit import UViT, UViTConfig
from fastdiff.models.video_unet import Unet3D, Unet3DConfig

ADM_FIELDS = dict(in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1, attention_resolutions=(2,),
                  channel_mult=(1, 2), num_head_channels=16)  # fmt: skip
LDM_FIELDS = {**ADM_FIELDS, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "context_dim": 8}
EDM_FIELDS = dict(img_resolution=16, in_channels=3, out_channels=3, label_dim=5, model_channels=32, channel_mult=(1, 2),
                  num_blocks=1, attn_resolutions=(8,))  # fmt: skip
SR3_FIELDS = dict(inner_channel=32, norm_groups=8, channel_mults=(1, 2), attn_res=(8,), res_blocks=1, image_size=16)
PALETTE_FIELDS = dict(in_channel=6, inner_channel=32, out_channel=3, res_blocks=1, attn_res=(2,), channel_mults=(1, 2),
                      num_head_channels=16)  # fmt: skip
LATENT = AutoencoderConfig(ch=32, out_ch=3, in_channels=3, z_channels=4, num_res_blocks=1, ch_mult=(1, 2),
                           resolution=16, attn_resolutions=(8,), embed_dim=3)  # fmt: skip
UVIT = dict(img_size=16, patch_size=4, embed_dim=48, depth=3, num_heads=4)
TEXT = dict(text_ctx=6, xf_width=32, xf_layers=2, xf_heads=4, xf_padding=True, n_vocab=20)


def picture(channels=3, size=16, batch=3):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def times(batch=3):
    return torch.linspace(1.0, 999.0, batch)


def text(batch=3):
    mask = torch.arange(6) < torch.tensor([2, 6, 4])[:batch, None]
    return {"tokens": (torch.arange(6 * batch) % 20).reshape(batch, 6), "mask": mask}


def one_hot(batch=3):
    return torch.eye(5)[:batch]


VIDEO = torch.randn(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
X, T, Y = picture(), times(), torch.tensor([0, 1, 2])
SMALL_PICTURE, CONTEXT = picture(size=5), torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
# The model, and the arguments of a call, all with one row a sample.
FAMILIES = {
    "ddpm": (
        lambda: DDPM(DDPMConfig(ch=32, out_ch=3, in_channels=3, num_res_blocks=1, attn_resolutions=(8,), resolution=16,
                                ch_mult=(1, 2))),
        dict(x=X, t=T)),
    "adm": (lambda: ADM(ADMConfig(**ADM_FIELDS, num_classes=4)), dict(x=X, t=T, y=Y)),
    "adm-updown": (
        lambda: ADM(ADMConfig(**ADM_FIELDS, use_scale_shift_norm=True, resblock_updown=True)), dict(x=X, t=T)),
    "adm-superres": (lambda: ADMSuperResolution(ADMConfig(**ADM_FIELDS)), dict(x=X, t=T, low_res=SMALL_PICTURE)),
    **{
        f"classifier-{pool}": (
            lambda pool=pool: ADMClassifier(ADMClassifierConfig(**ADM_FIELDS, pool=pool, image_size=16)),
            dict(x=X, t=T))
        for pool in POOLS
    },
    "ldm": (lambda: LDMUNet(LDMConfig(**LDM_FIELDS)), dict(x=picture(4), t=T, context=CONTEXT)),
    "sdxl": (
        lambda: LDMUNet(LDMConfig(**LDM_FIELDS, num_classes="sequential", adm_in_channels=7, transformer_depth=(1, 2))),
        dict(x=picture(4), t=T, context=CONTEXT, y=torch.randn(3, 7))),
    "controlled": (
        lambda: ControlledUNet(
            LDMUNet(LDMConfig(**LDM_FIELDS)),
            {name: ControlNet(ControlNetConfig(**LDM_FIELDS)) for name in ("edges", "depth")},
            scales={"depth": 0.5}, guess=True),
        dict(x=picture(4, 4), t=T, context=CONTEXT, edges=picture(size=32), depth=picture(size=32).flip(0))),
    "glide": (lambda: GLIDE(GLIDEConfig(**ADM_FIELDS, **TEXT)), dict(x=X, t=T, **text())),
    "glide-both": (
        lambda: GLIDE(GLIDEConfig(**ADM_FIELDS, **TEXT, super_res=True, inpaint=True)),
        dict(x=X, t=T, **text(), low_res=SMALL_PICTURE, inpaint_image=X.flip(0), inpaint_mask=(X[:, :1] > 0).float())),
    "sit": (
        lambda: SiT(DiTConfig(input_size=16, patch_size=4, in_channels=3, hidden_size=48, depth=2, num_heads=4,
                              num_classes=4, learn_sigma=False)),
        dict(x=X, t=T / 1000, y=Y)),
    "uvit": (
        lambda: UViT(UViTConfig(**UVIT, num_classes=4, qk_scale=0.2, qkv_bias=True, conv=False)), dict(x=X, t=T, y=Y)),
    "uvit-text": (
        lambda: UViT(UViTConfig(**UVIT, clip_dim=8, num_clip_token=4, mlp_time_embed=True)),
        dict(x=X, t=T, context=CONTEXT)),
    "video": (lambda: Unet3D(Unet3DConfig(dim=16, dim_mults=(1, 2), attn_heads=2)), dict(x=VIDEO, t=T)),
    "video-focus": (
        lambda: Unet3D(Unet3DConfig(dim=16, dim_mults=(1, 2), attn_heads=2, attn_dim_head=48, out_dim=5,
                                    use_sparse_linear_attn=False)),
        dict(x=VIDEO, t=T, focus_present_mask=torch.tensor([True, False, False]))),
    "unet-3d": (
        lambda: UNet3DCondition(UNet3DConditionConfig(
            in_channels=3, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
            attention_head_dim=8, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"))),
        dict(x=VIDEO, t=T, context=CONTEXT)),
    "unet-motion": (
        lambda: UNetMotion(UNetMotionConfig(
            in_channels=3, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
            num_attention_heads=2, motion_num_attention_heads=4, motion_max_seq_length=6,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"))),
        dict(x=VIDEO, t=T, context=CONTEXT)),
    "ddpm++": (
        lambda: EDMPrecond(SongUNet(SongConfig(**EDM_FIELDS))), dict(x=X, sigma=T / 100, class_labels=one_hot())),
    "ncsn++": (
        lambda: PRECONDITIONINGS["VEPrecond"](SongUNet(SongConfig(
            **EDM_FIELDS, embedding_type="fourier", encoder_type="residual", decoder_type="skip",
            resample_filter=(1, 3, 3, 1), channel_mult_noise=2))),
        dict(x=X, sigma=T / 100, class_labels=one_hot())),
    "edm-adm": (
        lambda: PRECONDITIONINGS["VPPrecond"](DhariwalUNet(DhariwalConfig(**{**EDM_FIELDS, "channel_mult": (2, 2)}))),
        dict(x=X, sigma=T / 100, class_labels=one_hot())),
    "sr3": (lambda: SR3UNet(SR3Config(**SR3_FIELDS)), dict(x=X, t=T / 1000, image=X.flip(0))),
    "sr3-ddpm": (lambda: SR3UNet(SR3Config(**SR3_FIELDS, network="ddpm")), dict(x=X, t=T, image=X.flip(0))),
    "sdm": (
        lambda: SDM(SDMConfig(**ADM_FIELDS, num_classes=4, use_scale_shift_norm=True, resblock_updown=True)),
        dict(x=X, t=T, y=picture(4).sign())),
    "sdm-plain": (lambda: SDM(SDMConfig(**ADM_FIELDS, num_classes=4)), dict(x=X, t=T, y=picture(4).sign())),
    "palette": (lambda: Palette(PaletteConfig(**PALETTE_FIELDS)), dict(x=X, t=T / 1000, image=X.flip(0))),
    "autoencoder-kl": (lambda: AutoencoderKL(LATENT), dict(x=X)),
    **UNCLIP,
    **IMAGEN,
    **DDP,
    **OTHER_DATA,
}  # fmt: skip


def make(name):
    """A model with no branch at zero, and the arguments of a call."""
    torch.manual_seed(0)
    build, arguments = FAMILIES[name]
    model = build().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model, arguments


def to_double(arguments):
    return {key: value.double() if value.is_floating_point() else value for key, value in arguments.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_a_gradient(name):
    model, arguments = make(name)
    model(**arguments).square().mean().backward()
    dead = {key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    dead = {key for key in dead if not key.endswith("gate.to_k.bias")}  # a softmax does not see it
    assert dead == {**UNUSED, **UNUSED_IMAGEN}.get(name, set())


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_samples_of_a_batch_do_not_mix(name):
    """In float64: products of other shapes round in another way, which some of these networks amplify."""
    model, arguments = make(name)
    model, arguments = model.double(), to_double(arguments)
    together = model(**arguments)
    alone = torch.cat([model(**{key: value[i : i + 1] for key, value in arguments.items()}) for i in range(3)])
    assert relative_error(alone, together) <= 1e-10


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_backends_agree(name):
    """The C++ kernels against plain PyTorch, both against float64."""
    model, arguments = make(name)
    with fastdiff.use("cpu"):
        ours = model(**arguments)
    with fastdiff.use("reference"):
        theirs = model(**arguments)
    oracle = model.double()(**to_double(arguments))
    scale = oracle.abs().max()
    # the embedding of the time is a large error of both: float32's eps at 999 radians
    assert (ours - oracle).abs().max() <= 2 * (theirs - oracle).abs().max() + 1e-6 * scale


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "adm",
        "ldm",
        "glide",
        "ddpm++",
        "controlled",
        "sdm",
        "sr3",
        "autoencoder-kl",
        "sit",
        "uvit",
        "video-focus",
        "unet-motion",
        *UNCLIP,
        *IMAGEN,
    ],
)
def test_half_precision(name):
    """bfloat16 keeps two digits; the times are embedded in float32."""
    model, arguments = make(name)
    expected = model(**arguments)
    kept = ("t", "sigma", "low_res_t")
    cast = {k: v.bfloat16() if v.is_floating_point() and k not in kept else v for k, v in arguments.items()}
    out = model.bfloat16()(**cast)
    assert out.dtype is torch.bfloat16
    assert (out.float() - expected).square().mean().sqrt() <= 0.1 * expected.square().mean().sqrt()


def test_conditions_matter():
    model, arguments = make("sdxl")
    out = model(**arguments)
    for key in ("t", "context", "y"):
        assert not torch.allclose(out, model(**{**arguments, key: arguments[key].flip(0)}), atol=1e-3), key
    model, arguments = make("glide")
    out = model(**arguments)
    other = {**arguments, "tokens": (arguments["tokens"] + 1) % 20}
    assert not torch.allclose(out, model(**other), atol=1e-3)
    hidden = {**arguments, "mask": torch.zeros_like(arguments["mask"])}
    torch.testing.assert_close(model(**hidden), model(**{**hidden, "tokens": other["tokens"]}))


def test_sampling_in_latents():
    """A whole run: guidance between two contexts, then the decoder."""
    unet, _ = make("ldm")
    autoencoder = AutoencoderKL(AutoencoderConfig(**{**LATENT.__dict__, "embed_dim": 4})).eval()
    model = LatentDiffusion(unet, autoencoder, scale_factor=0.2)
    classes = ClassEmbedder(3, 8)
    with torch.no_grad():
        cond, uncond = {"context": classes(torch.tensor([0, 1]))}, {"context": classes(torch.tensor([2, 2]))}
        schedule = fastdiff.schedules.VPDiscrete.scaled_linear()
        z = fastdiff.sample(model, (2, 4, 8, 8), schedule=schedule, prediction="eps", solver="ddim", steps=3,
                            guidance=fastdiff.CFG(2.0), cond=cond, uncond=uncond, seed=0)  # fmt: skip
        assert model.decode(z).shape == (2, 3, 16, 16)
        posterior = autoencoder.encode(X[:2])
        torch.testing.assert_close(model.encode(X[:2]), 0.2 * posterior.mean)
        noise = torch.randn_like(posterior.mean)
        torch.testing.assert_close(model.encode(X[:2], noise), 0.2 * posterior.sample(noise))
        torch.testing.assert_close(model.decode(0.2 * posterior.mean), autoencoder(X[:2]).clamp(-1, 1))


def test_quantiser_takes_the_nearest_entry():
    torch.manual_seed(0)
    quantise, z = VectorQuantizer(11, 3).double(), torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    entries, indices = quantise(z)
    rows = z.detach().movedim(1, -1)[..., None, :]
    nearest = (rows - quantise.embedding.weight).square().sum(-1).argmin(-1)
    assert torch.equal(indices, nearest)
    torch.testing.assert_close(entries.movedim(1, -1), quantise.embedding.weight[nearest])
    entries.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))  # straight through


def test_vq_autoencoder():
    torch.manual_seed(0)
    model = AutoencoderVQ(AutoencoderConfig(**{**LATENT.__dict__, "double_z": False, "n_embed": 16})).eval()
    z = model.encode(X)
    assert z.shape == (3, 3, 8, 8)
    torch.testing.assert_close(model(X), model.decode(model.quantize(z)[0], quantize=False))
    assert LatentDiffusion(torch.nn.Identity(), model, 1.0).encode(X).shape == z.shape


def test_size_vector():
    pooled, numbers = torch.randn(2, 5), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    y = size_vector(pooled, numbers, channels=8)
    assert y.shape == (2, 5 + 6 * 8)
    torch.testing.assert_close(y[:, :5], pooled)
    torch.testing.assert_close(y[:, 5 + 16 : 5 + 24], torch.tensor([[1.0] * 4 + [0.0] * 4] * 2))  # of the number 0


def test_linear_attention_and_other_options():
    linear = AutoencoderConfig(
        **{**LATENT.__dict__, "attn_type": "linear", "tanh_out": True, "resamp_with_conv": False}
    )
    out = AutoencoderKL(linear)(X)
    assert out.shape == X.shape
    assert out.abs().max() <= 1
    features = AutoencoderKL(AutoencoderConfig(**{**LATENT.__dict__, "give_pre_end": True}))(X)
    assert features.shape == (3, 32, 16, 16)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ADM(ADMConfig(**{**ADM_FIELDS, "num_head_channels": -1, "num_heads": 3})), "3 heads do not divide"),
        (lambda: ADMClassifier(ADMClassifierConfig(**ADM_FIELDS, pool="mean")), "unknown pool 'mean'"),
        (lambda: ADMClassifier(ADMClassifierConfig(**ADM_FIELDS, pool="attention")), "needs image_size"),
        (lambda: LDMConfig(**{**LDM_FIELDS, "context_dim": None}), "needs context_dim"),
        (lambda: LDMConfig(**{**LDM_FIELDS, "context_dim": (8, 9)}), "must repeat one number"),
        (lambda: LDMConfig(**{**LDM_FIELDS, "num_head_channels": -1}), "num_heads or num_head_channels"),
        (lambda: LDMConfig(**LDM_FIELDS, num_classes="sequentially"), "did you mean 'sequential'"),
        (lambda: SDMConfig(**ADM_FIELDS), "num_classes must be given"),
        (lambda: SDMConfig(**ADM_FIELDS, num_classes=4, dims=3), "dims must be 2, got 3"),
        (lambda: SR3Config(**SR3_FIELDS, network="ddmp"), "unknown network 'ddmp'; did you mean 'ddpm'"),
        (lambda: SR3Config(**SR3_FIELDS, with_noise_level_emb=False), "needs with_noise_level_emb"),
        (lambda: SongConfig(**EDM_FIELDS, encoder_type="skips"), "unknown encoder_type 'skips'; did you mean 'skip'"),
        (
            lambda: AutoencoderKL(AutoencoderConfig(**{**LATENT.__dict__, "attn_type": "vanila"})),
            "did you mean 'vanilla",
        ),
        (lambda: AutoencoderVQ(LATENT), "no double_z"),
        (lambda: Unet3DConfig(dim=16, init_dim=8), r"init_dim must be dim \(16\)"),
        (lambda: Unet3DConfig(dim=16, init_kernel_size=4), "init_kernel_size must be odd"),
        (lambda: UViTConfig(**{**UVIT, "patch_size": 3}), "img_size must be a multiple of patch_size"),
        (lambda: UViTConfig(**UVIT, clip_dim=8), "must be given together"),
        (lambda: UViTConfig(**UVIT, clip_dim=8, num_clip_token=4, num_classes=3), "not both"),
        *REFUSED_DDP_CONFIGS,
        *REFUSED_OTHER_DATA_CONFIGS,
    ],
)
def test_configs_that_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("adm", {"t": T[:2]}, r"t must be \(3,\)"),
        ("adm", {"y": None}, r"y must be \(3,\)"),
        ("adm-updown", {"y": Y}, "no classes"),
        ("ldm", {"context": CONTEXT[:, :, :5]}, r"context must be \(3, S, 8\)"),
        ("ldm", {"y": Y}, "no classes"),
        ("glide", {"tokens": None}, "tokens must be given"),
        ("glide", {"mask": None}, "mask must be"),
        ("glide-both", {"low_res": None}, "low_res must be given"),
        ("ddpm++", {"class_labels": torch.zeros(3, 4)}, r"class_labels must be \(B, 5\)"),
        ("autoencoder-kl", {"x": X[:, :, :15]}, "divisible by 2"),
        ("classifier-attention", {"x": picture(size=8)}, "takes features of 64 pixels"),
        ("ddpm", {"t": None}, r"t must be \(3,\)"),
        *REFUSED,
        ("unet-3d", {"x": X}, r"x must be \(B, 3, F, H, W\)"),
        ("unet-3d", {"context": CONTEXT[..., :5]}, r"context must be \(3, S, 8\), got \(3, 4, 5\)"),
        ("unet-motion", {"x": VIDEO.repeat(1, 1, 2, 1, 1)}, "at most 6 frames"),
        ("unet-motion", {"t": T[:2]}, r"t must be \(3,\)"),
        ("video", {"x": VIDEO[..., :7]}, "H and W divisible by 2"),
        ("video", {"x": X}, r"x must be \(B, 3, F, H, W\)"),
        ("video", {"cond": CONTEXT}, "takes no condition"),
        ("video", {"focus_present_mask": T}, r"focus_present_mask must be \(3,\) and boolean"),
        ("uvit", {"y": None}, r"y must be \(3,\), got None"),
        ("uvit", {"context": CONTEXT}, "the model takes none"),
        ("uvit-text", {"context": CONTEXT[:, :3]}, r"context must be \(3, 4, 8\), got \(3, 3, 8\)"),
        ("uvit-text", {"x": X[:, :, :8]}, r"x must be \(B, 3, 16, 16\)"),
        ("sdm", {"y": None}, r"y must be \(3, 4, 16, 16\), a map at x's size, got None"),
        ("sdm", {"y": picture(4, 8)}, r"y must be .* got \(3, 4, 8, 8\)"),
        ("sr3", {"t": T[:2]}, r"t must be \(3,\), one noise level a sample, got \(2,\)"),
        ("sr3", {"image": None}, r"image and x must have 6 channels together; x is \(3, 3, 16, 16\), image None"),
        ("palette", {"image": SMALL_PICTURE}, r"image must be the condition at x's size, .* image \(3, 3, 5, 5\)"),
        ("palette", {"image": picture(4)}, "image and x must have 6 channels together"),
        *REFUSED_IMAGEN,
        *REFUSED_DDP,
        *REFUSED_OTHER_DATA,
    ],
)
def test_bad_input(name, changes, message):
    model, arguments = make(name)
    with pytest.raises(ValueError, match=message):
        model(**{**arguments, **changes})
