"""Small models of unCLIP's kind for the tests that all families share: what builds one, and the arguments of a call."""

import torch

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
UNCLIP = {
    "prior": (
        lambda: Prior(PriorConfig(**PRIOR)), dict(x=IMAGE, t=T, embedding=TEXT, text=TOKENS, mask=MASK)),
    "prior-shape": (lambda: Prior(PriorConfig(**SHAPE)), dict(x=TOKENS, t=T, embedding=TEXT)),
    "unclip-decoder": (
        lambda: UnCLIPDecoder(
            UnCLIPConditioning(UnCLIPConfig(**PROJECTION)), UNet2DCondition(UNet2DConditionConfig(**JOINT))),
        dict(x=X, t=T, image=IMAGE, text=TEXT, tokens=TOKENS, mask=MASK)),
}  # fmt: skip
# Parameters that a call with these arguments does not need.
UNUSED = {"prior": {"mean", "std"}, "prior-shape": {"mean", "std"}, "unclip-decoder": {"conditioning.null_image"}}
# The kinds of attention, where it is not all among what goes through the network.
KINDS = {"unclip-decoder": {"joint"}}
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
]
