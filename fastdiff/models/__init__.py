"""Reference models in plain PyTorch, the checkpoints that they load, and the bundled weights."""

from fastdiff.models.checkpoints import layouts, load, on_meta

__all__ = ["layouts", "load", "on_meta"]
