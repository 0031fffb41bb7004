"""sWizad/split-diffusion: LTSP and STSP, with the metadata of guided-diffusion and a classifier's."""

from family_guided_diffusion import case

__all__ = ["case"]
