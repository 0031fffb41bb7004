"""What lies between products and norms, in Triton: sums after a convolution, gated linear units."""

from .forward import add_bias, gated
from .upsampled import interleave, phases

__all__ = ["add_bias", "gated", "interleave", "phases"]
