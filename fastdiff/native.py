"""The compiled module. Import it from here: torch must be loaded before it, since both share torch's OpenMP threads."""

import torch  # noqa: F401

try:
    from fastdiff import _core as core  # type: ignore[attr-defined]
except ImportError as error:
    raise ImportError(
        f"fastdiff's compiled module cannot be loaded ({error}); install the package with `python -m pip install .`"
    ) from error

__all__ = ["core"]
