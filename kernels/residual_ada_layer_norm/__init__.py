"""A gated residual, then adaLN, in Triton, and its gradients. The kernels are ada_layer_norm's."""

from .backward import residual_ada_layer_norm_backward
from .forward import residual_ada_layer_norm

__all__ = ["residual_ada_layer_norm", "residual_ada_layer_norm_backward"]
