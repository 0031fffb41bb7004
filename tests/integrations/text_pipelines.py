"""Pipelines with text encoders: random weights, and vocabularies of a few words."""

import diffusers
import tokenizers
import torch
import transformers

WORDS = ["a", "red", "apple", "and", "green", "pear", "on", "the", "table"]
SHORT, LONG = "a red apple", "a red apple and a green pear on the table and a red apple"
PROMPTS = ["a red apple", "the green pear on the table"]
CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "vocab_size": 16, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 3,
        "pad_token_id": 0}  # fmt: skip
T5 = {"d_model": 40, "d_kv": 10, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 16, "dropout_rate": 0.0}
UNET = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4}  # fmt: skip


def tokenizer(length, *, begin=True):
    """Words of the list, and an unknown one; CLIP's has a mark at the beginning too."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[B]", "[UNK]", "[E]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[B] $A [E]" if begin else "$A [E]", special_tokens=[("[B]", 1), ("[E]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", bos_token="[B]", eos_token="[E]",
        model_max_length=length)  # fmt: skip


def clip(seed, *, projected=False, **changes):
    torch.manual_seed(seed)
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return cls(transformers.CLIPTextConfig(**{**CLIP, "projection_dim": 24, **changes})).eval()


def t5(seed=5):
    torch.manual_seed(seed)
    return transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()


def vae():
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)


def stable_diffusion(**changes):
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(1, **changes), tokenizer=tokenizer(12), safety_checker=None,
        unet=diffusers.UNet2DConditionModel(**UNET, cross_attention_dim=32), feature_extractor=None,
        scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False)  # fmt: skip


def stable_diffusion_xl(**options):
    unet = diffusers.UNet2DConditionModel(
        **UNET, cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8)  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(1), text_encoder_2=clip(2, projected=True), tokenizer=tokenizer(12),
        tokenizer_2=tokenizer(12), unet=unet, scheduler=diffusers.DDIMScheduler(), **options)  # fmt: skip


def pixart(cls="PixArtAlphaPipeline"):
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, cross_attention_dim=16, sample_size=8,
        caption_channels=40)  # fmt: skip
    return getattr(diffusers, cls)(
        tokenizer=tokenizer(64, begin=False), text_encoder=t5(), vae=vae(), transformer=transformer,
        scheduler=diffusers.DDIMScheduler())  # fmt: skip


def stable_diffusion_3(*, with_t5=True):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=80,
        caption_projection_dim=16, pooled_projection_dim=48, pos_embed_max_size=8)  # fmt: skip
    encoder = transformers.T5EncoderModel(transformers.T5Config(**{**T5, "d_model": 80})).eval() if with_t5 else None
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(),
        text_encoder=clip(1, projected=True), tokenizer=tokenizer(12), text_encoder_2=clip(2, projected=True),
        tokenizer_2=tokenizer(12), text_encoder_3=encoder,
        tokenizer_3=tokenizer(64, begin=False) if with_t5 else None)  # fmt: skip


def flux():
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=40, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6))  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(),
        text_encoder=clip(1), tokenizer=tokenizer(12), text_encoder_2=t5(),
        tokenizer_2=tokenizer(64, begin=False))  # fmt: skip
