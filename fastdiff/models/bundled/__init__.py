"""The models that come with the package: `load`, the weights, and the networks that only they have."""

from fastdiff.models.bundled.loading import BundledModel, folder, load, load_files, names, own, save_files, to_pictures

__all__ = ["BundledModel", "folder", "load", "load_files", "names", "own", "save_files", "to_pictures"]
