"""Guidance: how conditions steer the sample, and how x0 is kept in range."""

from fastdiff.guidance.classifier import Classifier
from fastdiff.guidance.classifier_free import CFG
from fastdiff.guidance.thresholding import Threshold

Guidance = CFG | Classifier

__all__ = ["CFG", "Classifier", "Guidance", "Threshold"]
