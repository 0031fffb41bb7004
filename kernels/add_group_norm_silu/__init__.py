"""What is added after a convolution and the group norm of the sum, in Triton."""

from .forward import Forward, add_group_norm_silu, other_plans

__all__ = ["Forward", "add_group_norm_silu", "other_plans"]
