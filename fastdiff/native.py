"""The compiled module. Import it from here: torch must be loaded before it, since both share torch's OpenMP threads."""

from pathlib import Path

import torch  # noqa: F401

try:
    from fastdiff import _core as core  # type: ignore[attr-defined]
except ImportError as error:
    folder = Path(__file__).parent
    if (folder.parent / "CMakeLists.txt").exists():
        advice = (
            f"Python imports fastdiff from its source tree, {folder}, where nothing is compiled: run from another "
            "folder after `python -m pip install .`, or install with `python -m pip install -e .`"
        )
    else:
        advice = "install the package again with `python -m pip install --force-reinstall .`"
    raise ImportError(f"fastdiff's compiled module cannot be loaded ({error}); {advice}") from error

__all__ = ["core"]
