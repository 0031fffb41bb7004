"""Group norm, scale and shift, SiLU in Triton, and their gradients."""

from .backward import group_norm_silu_backward
from .launch import Forward, group_norm_silu

__all__ = ["Forward", "group_norm_silu", "group_norm_silu_backward"]
