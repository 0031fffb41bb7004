"""The compiled module. Import it from here: torch must be loaded before it, since both share torch's OpenMP threads."""

import ctypes
import sys
from pathlib import Path

import torch  # noqa: F401


def share_openmp(maps: str = "/proc/self/maps") -> str | None:
    """Make the OpenMP runtime that torch has loaded visible to libraries that are loaded later. torch's wheels for ARM
    load theirs for torch alone, under a name of their own. Returns its path, None if nothing was to be done.

    maps: where Linux lists the files that are loaded.
    """
    if sys.platform != "linux" or hasattr(ctypes.CDLL(None), "GOMP_parallel") or not Path(maps).exists():
        return None
    for line in Path(maps).read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith("libgomp"):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return path
    return None


share_openmp()
try:
    from fastdiff import _core as core  # type: ignore[attr-defined]
except ImportError as error:
    folder = Path(__file__).parents[1]  # of the package
    if (folder.parent / "CMakeLists.txt").exists():
        advice = (
            f"Python imports fastdiff from its source tree, {folder}, where nothing is compiled: run from another "
            "folder after `python -m pip install .`, or install with `python -m pip install -e .`"
        )
    else:
        advice = "install the package again with `python -m pip install --force-reinstall .`"
    raise ImportError(f"fastdiff's compiled module cannot be loaded ({error}); {advice}") from error

__all__ = ["core"]
