"""adaLN in Triton, and its gradients."""

from .backward import ada_layer_norm_backward
from .forward import Forward, ada_layer_norm

__all__ = ["Forward", "ada_layer_norm", "ada_layer_norm_backward"]
