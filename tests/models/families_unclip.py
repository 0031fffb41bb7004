"""Small models of unCLIP's kind for the tests that all families share: what builds one, and the arguments of a call."""

import torch

from fastdiff.models.dalle2_prior import DALLE2Prior, DALLE2PriorConfig
from fastdiff.models.karlo import KarloDecoder, KarloDecoderConfig, KarloUNet, KarloUNetConfig
from fastdiff.models.prior import Prior, PriorConfig
from fastdiff.models.unclip import UnCLIPConditioning, UnCLIPConfig, UnCLIPDecoder
from fastdiff.models.unet_2d_condition import UNet2DCondition, UNet2DConditionConfig


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, T, MASK = normal(3, 3, 8, 8), torch.linspace(1.0, 999.0, 3), torch.arange(4) < torch.tensor([[2], [3], [4]])
IMAGE, TEXT, TOKENS = normal(3, 12, seed=2), normal(3, 12, seed=3), normal(3, 4, 12, seed=4)
PRIOR = dict(num_attention_heads=4, attention_head_dim=8, num_layers=2, embedding_dim=12, num_embeddings=4)
SHAPE = {**PRIOR, "additional_embeddings": 0, "norm_in_type": "layer", "embedding_proj_norm_type": "layer",
         "encoder_hid_proj_type": None, "added_emb_type": None, "time_embed_act_fn": "gelu"}  # fmt: skip
PROJECTION = dict(time_embed_dim=128, cross_attention_dim=16, clip_extra_context_tokens=2, clip_embeddings_dim=12)
JOINT = dict(in_channels=3, out_channels=6, block_out_channels=(32, 48), layers_per_block=1, norm_num_groups=8,
             cross_attention_dim=16, attention_head_dim=16, class_embed_type="identity",
             resnet_time_scale_shift="scale_shift", mid_block_type="UNetMidBlock2DSimpleCrossAttn",
             down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
             up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"))  # fmt: skip
KARLO = dict(in_channels=3, model_channels=32, out_channels=3, num_res_blocks=1, attention_resolutions=(),
             channel_mult=(2, 2))  # fmt: skip
DECODER = {**KARLO, "out_channels": 6, "attention_resolutions": (2,), "num_head_channels": 16, "xf_width": 16,
           "clip_dim": 12, "clip_emb_mult": 2, "clip_emb_drop": 0.1, "use_scale_shift_norm": True,
           "resblock_updown": True}  # fmt: skip
DALLE2 = dict(dim=12, depth=2, dim_head=8, heads=2, max_text_len=6)
KEEP = dict(keep_text=torch.tensor([True, False, True]), keep_image=torch.tensor([False, True, True]))
UNCLIP = {
    "prior": (
        lambda: Prior(PriorConfig(**PRIOR)), dict(x=IMAGE, t=T, embedding=TEXT, text=TOKENS, mask=MASK)),
    "prior-shape": (lambda: Prior(PriorConfig(**SHAPE)), dict(x=TOKENS, t=T, embedding=TEXT)),
    "prior-dalle2": (
        lambda: DALLE2Prior(DALLE2PriorConfig(
            **DALLE2, num_time_embeds=2, num_image_embeds=2, num_text_embeds=2, self_cond=True, norm_in=True,
            normformer=True)),
        dict(x=IMAGE, t=T / 1000, text=TEXT, tokens=TOKENS, self_cond=TEXT.flip(0), **KEEP)),
    "prior-dalle2-steps": (
        lambda: DALLE2Prior(DALLE2PriorConfig(**DALLE2, num_timesteps=9)),
        dict(x=IMAGE, t=torch.tensor([0, 5, 8]), text=TEXT, tokens=TOKENS, **KEEP)),
    "unclip-decoder": (
        lambda: UnCLIPDecoder(
            UnCLIPConditioning(UnCLIPConfig(**PROJECTION)), UNet2DCondition(UNet2DConditionConfig(**JOINT))),
        dict(x=X, t=T, image=IMAGE, text=TEXT, tokens=TOKENS, mask=MASK)),
    "karlo-decoder": (
        lambda: KarloDecoder(KarloDecoderConfig(**DECODER)),
        dict(x=X, t=T, image=IMAGE, text=TEXT, tokens=TOKENS, mask=MASK)),
    "karlo-superres": (
        lambda: KarloUNet(KarloUNetConfig(**KARLO, use_middle_attention=False, super_res=True)),
        dict(x=X, t=T, low_res=normal(3, 3, 8, 8, seed=5))),
    "karlo-vector": (lambda: KarloUNet(KarloUNetConfig(**KARLO, clip_dim=12)), dict(x=X, t=T, y=TEXT)),
}  # fmt: skip
# Parameters that a call with these arguments does not need.
UNUSED = {
    "prior": {"mean", "std"},
    "prior-shape": {"mean", "std"},
    "unclip-decoder": {"conditioning.null_image"},
    "karlo-decoder": {"conditioning.null_image"},
}
# The kinds of attention, where it is not all among what goes through the network.
KINDS = {"unclip-decoder": {"joint"}, "karlo-decoder": {"joint"}, "karlo-superres": set()}
# A call that is refused: the changes of its arguments, and what the error says.
REFUSED = [
    ("prior", {"x": IMAGE[:, :11]}, r"x must be \(B, 12\), got \(3, 11\)"),
    ("prior", {"embedding": IMAGE[:, :11]}, r"embedding must be \(3, 12\), got \(3, 11\)"),
    ("prior", {"text": TOKENS[:, :3]}, r"text must be \(3, 4, 12\), got \(3, 3, 12\)"),
    ("prior", {"text": None}, r"text must be \(3, 4, 12\), got None"),
    ("prior", {"mask": MASK[:, :3]}, r"mask must be \(3, 4\), got \(3, 3\)"),
    ("prior", {"t": T[:2]}, r"t must be \(3,\)"),
    ("prior-shape", {"text": TOKENS}, "takes no tokens of a text"),
    ("prior-shape", {"x": TOKENS[:, :1]}, "positions for 4 tokens, and the input makes 3"),
    ("unclip-decoder", {"image": IMAGE[:, :9]}, r"image must be \(3, 12\), got \(3, 9\)"),
    ("unclip-decoder", {"text": TEXT[:, :9]}, r"text must be \(B, 12\), got \(3, 9\)"),
    ("unclip-decoder", {"tokens": TOKENS[:2]}, r"tokens must be \(3, S, 12\), got \(2, 4, 12\)"),
    ("unclip-decoder", {"mask": MASK[:, :3]}, r"mask must be \(3, 4\), got \(3, 3\)"),
    ("karlo-decoder", {"image": IMAGE[:, :9]}, r"image must be \(3, 12\), got \(3, 9\)"),
    ("karlo-superres", {"low_res": None}, r"low_res must be \(3, 3, 8, 8\), as x, got None"),
    ("karlo-superres", {"low_res": X[:, :, :4]}, r"low_res must be \(3, 3, 8, 8\), as x, got \(3, 3, 4, 8\)"),
    ("karlo-superres", {"y": TEXT}, "no clip_dim"),
    ("karlo-superres", {"t": None}, r"t must be \(3,\)"),
    ("karlo-vector", {"y": TEXT[:, :9]}, r"y must be \(3, 12\), got \(3, 9\)"),
    ("karlo-vector", {"low_res": X}, "no super_res"),
    ("prior-dalle2", {"x": IMAGE[:, :9]}, r"x must be \(3, 12\), got \(3, 9\)"),
    ("prior-dalle2", {"text": TEXT[:2]}, r"text must be \(3, 12\), got \(2, 12\)"),
    ("prior-dalle2", {"tokens": TOKENS[..., :9]}, r"tokens must be \(3, S, 12\), got \(3, 4, 9\)"),
    ("prior-dalle2", {"keep_text": MASK}, r"keep_text must be \(3,\), got \(3, 4\)"),
    ("prior-dalle2", {"t": T[:2]}, r"t must be \(3,\)"),
    ("prior-dalle2-steps", {"self_cond": TEXT}, "has no self_cond"),
]
