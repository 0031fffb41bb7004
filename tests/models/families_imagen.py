"""Small U-Nets of Imagen for the tests that all families share: what builds one, and the arguments of a call."""

import torch

from fastdiff.models.imagen import ImagenConfig, ImagenUNet


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, T = normal(3, 3, 8, 8), torch.tensor([-4.0, 0.5, 3.0])
TEXT, MASK = normal(3, 5, 12, seed=2), torch.arange(5) < torch.tensor([[2], [3], [5]])
KEEP = torch.tensor([True, False, True])
FIELDS = dict(dim=16, text_embed_dim=12, max_text_len=6, attn_pool_num_latents=3, learned_sinu_pos_emb_dim=4,
              dim_mults=(1, 2), attn_heads=2, attn_dim_head=8, layer_attns=(False, True),
              layer_cross_attns=(False, True))  # fmt: skip
FLAGS = dict(memory_efficient=True, lowres_cond=True, self_cond=True, cond_images_channels=2,
             use_linear_attn=(True, False), use_linear_cross_attn=(True, False), combine_upsample_fmaps=True,
             init_conv_to_final_conv_residual=True, scale_skip_connection=False, pixel_shuffle_upsample=False,
             num_resnet_blocks=(2, 1))  # fmt: skip
BASE, EFFICIENT = ImagenConfig(**FIELDS), ImagenConfig(**FIELDS, **FLAGS)
TEXTS = dict(text=TEXT, mask=MASK, keep_text=KEEP)
IMAGEN = {
    "imagen-base": (lambda: ImagenUNet(BASE), dict(x=X, t=T, **TEXTS)),
    "imagen-efficient": (
        lambda: ImagenUNet(EFFICIENT),
        dict(x=X, t=T, **TEXTS, low_res=normal(3, 3, 8, 8, seed=3), low_res_t=T.flip(0),
             cond_images=normal(3, 2, 4, 4, seed=4), self_cond=normal(3, 3, 8, 8, seed=5))),
}  # fmt: skip
# Linear attention does not use the gains of queries and keys; the original has them.
UNUSED = {
    "imagen-efficient": {f"{layer}.cross.{name}" for layer in ("down.0.2", "up.2.0") for name in ("q_scale", "k_scale")}
}
# A call that is refused: the changes of its arguments, and what the error says.
REFUSED = [
    ("imagen-base", {"x": X[:, :, :7]}, r"H and W divisible by 2, got \(3, 3, 7, 8\)"),
    ("imagen-efficient", {"x": X[:, :, :6]}, r"H and W divisible by 4, got \(3, 3, 6, 8\)"),
    ("imagen-base", {"t": T[:2]}, r"t must be \(3,\), one a sample, got \(2,\)"),
    ("imagen-base", {"text": TEXT[..., :9]}, r"text must be \(3, S, 12\), got \(3, 5, 9\)"),
    ("imagen-base", {"mask": MASK[:, :4]}, r"mask must be \(3, 5\), got \(3, 4\)"),
    ("imagen-base", {"keep_text": MASK}, r"keep_text must be \(3,\), got \(3, 5\)"),
    ("imagen-base", {"low_res": X}, "has no lowres_cond"),
    ("imagen-base", {"self_cond": X}, "has no self_cond"),
    ("imagen-base", {"cond_images": X}, "cond_images must have 0 channels, got 3"),
    ("imagen-efficient", {"low_res": None}, "low_res must be given"),
    ("imagen-efficient", {"low_res_t": None}, "low_res_t must be given"),
    ("imagen-efficient", {"low_res": X[:, :, :4]}, r"low_res must be \(3, 3, 8, 8\), as x, got \(3, 3, 4, 8\)"),
    ("imagen-efficient", {"self_cond": X[:, :2]}, r"self_cond must be \(3, 3, 8, 8\), as x"),
    ("imagen-efficient", {"cond_images": None}, "cond_images must have 2 channels, got 0"),
]
