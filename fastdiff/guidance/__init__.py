"""Guidance: how conditions steer the sample, and how x0 is kept in range."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from fastdiff.arguments import described, number
from fastdiff.guidance.classifier import Classifier
from fastdiff.guidance.classifier_free import CFG
from fastdiff.guidance.gradients import Gradients, cfg_of, gradients_of, without_cfg, without_functions
from fastdiff.guidance.thresholding import Threshold

Guidance = CFG | Classifier | Gradients


def make_guidance(given: Any) -> Guidance | None:
    """From what `fastdiff.sample` takes. Raises TypeError for what is neither guidance nor scales of CFG."""
    if given is None or isinstance(given, (CFG, Classifier, Gradients)):
        return given
    if isinstance(given, (Real, Tensor, np.ndarray, list, tuple)) and not isinstance(given, bool):
        return CFG(given)  # type: ignore[arg-type]
    raise TypeError(
        "guidance must be a number, one a sample, fastdiff.CFG, fastdiff.Classifier or fastdiff.guidance.Gradients, "
        f"got {described(given)}"
    )


def make_threshold(given: Any) -> Threshold | None:
    """From what `fastdiff.sample` takes. Raises TypeError for what is neither a Threshold nor a number."""
    if given is None or isinstance(given, Threshold):
        return given
    if isinstance(given, (Real, Tensor, np.ndarray)) and not isinstance(given, bool):
        return Threshold(number("threshold", given))
    raise TypeError(f"threshold must be a number or fastdiff.Threshold, got {described(given)}")


__all__ = [
    "CFG",
    "Classifier",
    "Gradients",
    "Guidance",
    "Threshold",
    "cfg_of",
    "gradients_of",
    "make_guidance",
    "make_threshold",
    "without_cfg",
    "without_functions",
]
