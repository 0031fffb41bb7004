"""Text encoders, which are transformers' classes."""

from fastdiff.integrations.transformers.conditions import TextConditions, load_text
from fastdiff.integrations.transformers.encoders import CLASSES, clip_from_openai, text_encoder

__all__ = ["CLASSES", "TextConditions", "clip_from_openai", "load_text", "text_encoder"]
