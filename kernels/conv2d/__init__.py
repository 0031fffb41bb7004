"""2-D convolution in Triton, with all that follows in the same kernel."""

from .forward import conv2d
from .tiles import Tile, tiles

__all__ = ["Tile", "conv2d", "tiles"]
