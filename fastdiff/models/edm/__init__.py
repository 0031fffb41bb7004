"""EDM (Karras et al. 2022): the networks, and the preconditioning around them."""

from fastdiff.models.edm.networks import DhariwalConfig, DhariwalUNet, SongConfig, SongUNet
from fastdiff.models.edm.preconditioning import PRECONDITIONINGS, EDMPrecond, IDDPMPrecond, VEPrecond, VPPrecond

__all__ = [
    "PRECONDITIONINGS",
    "DhariwalConfig",
    "DhariwalUNet",
    "EDMPrecond",
    "IDDPMPrecond",
    "SongConfig",
    "SongUNet",
    "VEPrecond",
    "VPPrecond",
]
