"""Reference models in plain PyTorch, the checkpoints that they load, and the bundled weights.

A model family is one file, or a folder if it has several subjects: its config, and its networks, made of `parts`. What
its authors published is read by one file in `checkpoints`. `info` holds what is known of a trained model, `bundled` the
models that come with the package, `caching` the reuse of features from step to step.
"""

from fastdiff.models.checkpoints import layouts, load, on_meta

__all__ = ["layouts", "load", "on_meta"]
