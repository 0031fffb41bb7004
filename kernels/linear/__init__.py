"""Linear layers with what follows them, in Triton."""

from .few import MOST
from .launch import aligned, choice_of, linear, tiles_of
from .tiles import Tile

__all__ = ["MOST", "Tile", "aligned", "choice_of", "linear", "tiles_of"]
