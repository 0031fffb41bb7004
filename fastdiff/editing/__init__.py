"""Changing a picture that is there: back into noise and forward again."""

from fastdiff.editing.inversion import diffuse, encode

__all__ = ["diffuse", "encode"]
