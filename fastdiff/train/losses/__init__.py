"""Training objectives, a few a file: loss(network, process, batch, generator, ...) -> (B,), the loss of each sample.

network: called as `network(x, t, **cond)`. process: a `fastdiff.train.process.Process`. batch: the data (B, ...) on
the network's device. generator: all randomness of the loss, on the CPU; what is drawn may be given instead.
"""

from collections.abc import Callable

from torch import Tensor

from fastdiff.train.losses.consistency import consistency_loss, improved_consistency_loss
from fastdiff.train.losses.covariance import covariance_loss
from fastdiff.train.losses.denoising import denoising_loss
from fastdiff.train.losses.distillation import dds_loss, sds_loss
from fastdiff.train.losses.edm import edm_loss
from fastdiff.train.losses.flow import curvature_loss, euler_pairs, flow_matching_loss
from fastdiff.train.losses.guided import guided_loss
from fastdiff.train.losses.guided_consistency import guided_consistency_loss
from fastdiff.train.losses.progressive import progressive_loss
from fastdiff.train.losses.resampling import LossSecondMoments
from fastdiff.train.losses.scheduled import scheduled_loss
from fastdiff.train.losses.score_matching import score_of_energy, sliced_loss
from fastdiff.train.losses.spectral import spectral_loss
from fastdiff.train.losses.student import ddim_pairs, one_shot_loss
from fastdiff.train.losses.trajectories import inverse_dynamics_loss, trajectory_loss
from fastdiff.train.losses.truncated import discriminator_loss, generator_loss, truncated_loss
from fastdiff.train.losses.variational import variational_loss
from fastdiff.train.losses.vlb import bits_per_dim, ddpm_loss

# Those that take a Process, by name; of one network, which is trained alone.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "denoising": denoising_loss,
    "ddpm": ddpm_loss,
    "edm": edm_loss,
    "covariance": covariance_loss,
    "sliced": sliced_loss,
}

__all__ = [
    "LOSSES",
    "LossSecondMoments",
    "bits_per_dim",
    "consistency_loss",
    "covariance_loss",
    "curvature_loss",
    "ddim_pairs",
    "ddpm_loss",
    "dds_loss",
    "denoising_loss",
    "discriminator_loss",
    "edm_loss",
    "euler_pairs",
    "flow_matching_loss",
    "generator_loss",
    "guided_consistency_loss",
    "guided_loss",
    "improved_consistency_loss",
    "inverse_dynamics_loss",
    "one_shot_loss",
    "progressive_loss",
    "scheduled_loss",
    "score_of_energy",
    "sds_loss",
    "sliced_loss",
    "spectral_loss",
    "trajectory_loss",
    "truncated_loss",
    "variational_loss",
]
