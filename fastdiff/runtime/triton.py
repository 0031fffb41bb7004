"""The Triton kernels of kernels/: whether they can run here, and why not. Triton itself is not imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import Any

import torch

OLDEST = (3, 2)
OLDEST_GPU = (8, 0)  # compute capability that Triton compiles for
_NAMES = ("triton", "pytorch-triton", "pytorch-triton-rocm")  # of the packages that hold it


def missing() -> str | None:
    """Why there is no Triton to compile the kernels, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (python -m pip install triton; it has wheels for Linux)"
    for name in _NAMES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            return f"Triton {version} is older than {OLDEST[0]}.{OLDEST[1]}, the oldest that the kernels are for"
        return None
    return None


# Plain globals and not calls: torch.compile guards on the former and cannot trace the latter.
MISSING = missing()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton reads it when its kernels are imported


def unavailable() -> str | None:
    """Why no Triton kernel can run here, on no device, in one line; or None."""
    if MISSING is not None or INTERPRETED:
        return MISSING
    if torch.cuda.is_available():
        return too_old(torch.device("cuda"))
    return "torch sees no GPU" if torch.version.cuda or torch.version.hip else "torch sees no GPU: it is a CPU build"


def too_old(device: torch.device) -> str | None:
    """Why Triton does not compile for a CUDA device, or None."""
    if torch.version.hip:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= OLDEST_GPU:
        return None
    return f"the GPU has compute capability {major}.{minor}, and Triton's kernels need {OLDEST_GPU[0]}.{OLDEST_GPU[1]}"


def precision() -> str:
    """Of float32 products in Triton, "ieee" or "tf32": what PyTorch's settings allow its own."""
    given = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # from PyTorch 2.9 on, which refuses the others
    if given is None:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "tf32" if given == "tf32" else "ieee"


def convolution_precision() -> str:
    """The same of float32 convolutions."""
    try:
        return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    except RuntimeError:  # where only one of cuDNN's settings was changed
        convolutions: Any = torch.backends.cudnn
        return "tf32" if convolutions.conv.fp32_precision == "tf32" else "ieee"
