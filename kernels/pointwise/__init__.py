"""What lies between products and norms, in Triton: sums after a convolution, gated linear units."""

from .forward import add_bias, gated

__all__ = ["add_bias", "gated"]
