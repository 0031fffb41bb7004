"""openai/guided-diffusion with a classifier: the metadata of guided-diffusion and the classifier's."""

from family_guided_diffusion import case

__all__ = ["case"]
