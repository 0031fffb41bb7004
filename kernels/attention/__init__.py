"""Attention in Triton: the output with the scores' log-sum-exp, the probabilities, and the gradients."""

from .backward import attention_backward
from .forward import Forward, Maps, attention_forward, attention_maps

__all__ = ["Forward", "Maps", "attention_backward", "attention_forward", "attention_maps"]
