"""Small U-Nets of denoising-diffusion-pytorch for the tests that all families share."""

import torch

from fastdiff.models.ddp import (
    ClassUnet,
    ClassUnetConfig,
    KarrasUnet,
    KarrasUnetConfig,
    Unet,
    Unet1D,
    Unet1DConfig,
    UnetConfig,
)


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, ROW, T = normal(3, 3, 8, 8), normal(3, 3, 16), torch.tensor([1.0, 77.0, 500.0])
Y = torch.tensor([0, 5, 2])  # 5 is for none
FIELDS = dict(dim=16, dim_mults=(1, 2))
KARRAS = dict(image_size=8, dim=16, dim_max=24, channels=3, num_downsamples=1, num_blocks_per_stage=1, attn_res=(4, 8),
              fourier_dim=6, attn_dim_head=8)  # fmt: skip


def gained(config):
    """KarrasUnet, whose gains begin at zero."""
    model = KarrasUnet(config)
    for name, parameter in model.named_parameters():
        if name.endswith("gain"):
            torch.nn.init.ones_(parameter)
    return model


DDP = {
    "ddp": (lambda: Unet(UnetConfig(**FIELDS, attn_heads=2, attn_dim_head=8)), dict(x=X, t=T)),
    "ddp-flags": (
        lambda: Unet(UnetConfig(**FIELDS, init_dim=8, self_condition=True, learned_variance=True,
                                full_attn=(True, False), learned_sinusoidal_cond=True, attn_heads=(1, 2),
                                attn_dim_head=(8, 16))),
        dict(x=X, t=T / 500, self_cond=X.flip(0))),
    "ddp-1d": (
        lambda: Unet1D(Unet1DConfig(**FIELDS, self_condition=True, sinusoidal_pos_emb_theta=200)),
        dict(x=ROW, t=T, self_cond=ROW.flip(0))),
    "ddp-classes": (
        lambda: ClassUnet(ClassUnetConfig(**FIELDS, num_classes=5, attn_heads=2)), dict(x=X, t=T, y=Y)),
    "karras": (lambda: gained(KarrasUnetConfig(**KARRAS)), dict(x=X, t=T / 500)),
    "karras-classes": (
        lambda: gained(KarrasUnetConfig(**KARRAS, num_classes=4, self_condition=True)),
        dict(x=X, t=T / 500, y=torch.tensor([0, 3, 1]), self_cond=X.flip(0))),
}  # fmt: skip
# A call that is refused: the changes of its arguments, and what the error says.
REFUSED = [
    ("ddp", {"x": X[:, :, :7]}, r"x must be \(B, 3, H, W\) with H and W divisible by 2, got \(3, 3, 7, 8\)"),
    ("ddp", {"t": T[:2]}, r"t must be \(3,\), one time a sample, got \(2,\)"),
    ("ddp", {"self_cond": X}, "has no self_condition"),
    ("ddp-flags", {"self_cond": X[:2]}, r"self_cond must be \(3, 3, 8, 8\), as x"),
    ("ddp-1d", {"x": X}, r"x must be \(B, 3, L\) with L divisible by 2"),
    ("ddp-classes", {"y": None}, r"y must be \(3,\), one class a sample, got None"),
    ("karras", {"x": X[:, :, :4]}, r"x must be \(B, 3, 8, 8\), got \(3, 3, 4, 8\)"),
    ("karras", {"y": Y}, "the model has no classes"),
    ("karras", {"self_cond": X}, "has no self_condition"),
    ("karras-classes", {"y": torch.zeros(3, 5)}, r"y must be \(3,\), whole numbers, or \(3, 4\), got \(3, 5\)"),
    ("karras-classes", {"t": T[:2]}, r"t must be \(3,\)"),
]
REFUSED_CONFIGS = [
    (lambda: UnetConfig(**FIELDS, attn_heads=(1, 2, 3)), "attn_heads must be one, or 2, one a level"),
    (lambda: UnetConfig(dim=15), "dim must be even"),
    (lambda: Unet1DConfig(**FIELDS, learned_sinusoidal_cond=True, learned_sinusoidal_dim=3), "must be even"),
    (lambda: KarrasUnetConfig(**{**KARRAS, "image_size": 9}), "image_size must be divisible by 2"),
    (lambda: KarrasUnetConfig(**{**KARRAS, "num_blocks_per_stage": 0}), "num_blocks_per_stage must be 1 or more"),
]
