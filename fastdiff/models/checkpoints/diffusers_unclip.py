"""Checkpoints of diffusers' UnCLIPTextProjModel, which stands before Karlo's decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastdiff.models.checkpoints.layout import Checkpoint, Derived, Layout, register, renamed
from fastdiff.models.checkpoints.openai_unet import fields_of
from fastdiff.models.unclip import UnCLIPConditioning, UnCLIPConfig

# Ours to theirs.
_RULES = (
    (r"null_image$", "learned_classifier_free_guidance_embeddings"),
    (r"text_to_time\.", "embedding_proj."),
    (r"image_to_time\.", "clip_image_embeddings_project_to_time_embeddings."),
    (r"image_to_context\.", "clip_extra_context_tokens_proj."),
    (r"tokens_to_context\.", "encoder_hidden_states_proj."),
    (r"norm\.", "text_encoder_hidden_states_norm."),
)


@register
class UnCLIPConditioningLayout(Layout):
    """Everything is in the shapes."""

    name = "diffusers"
    class_name = about = "UnCLIPTextProjModel"
    fields: ClassVar = {field: default for field, default in fields_of(UnCLIPConfig).items() if field != "learned_null"}
    markers = (
        "learned_classifier_free_guidance_embeddings",
        "clip_extra_context_tokens_proj.weight",
        "text_encoder_hidden_states_norm.weight",
    )

    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        context, channels = checkpoint.shape("encoder_hidden_states_proj.weight")
        return {
            "time_embed_dim": checkpoint.shape("embedding_proj.weight")[0],
            "cross_attention_dim": context,
            "clip_extra_context_tokens": checkpoint.shape("clip_extra_context_tokens_proj.weight")[0] // context,
            "clip_embeddings_dim": channels,
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return UnCLIPConditioning(UnCLIPConfig(**config))

    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        return renamed(name, _RULES)
