"""SiT: a diffusion transformer that is trained as a flow. Ma et al. 2024, SiT: Exploring Flow and Diffusion-based
Generative Models with Scalable Interpolant Transformers."""

from __future__ import annotations

from torch import Tensor

from fastdiff.models.dit import DiT
from fastdiff.models.parts.reuse import Reuse


class SiT(DiT):
    """`model(x, t, y)` -> (B, in_channels, H, W), the velocity of the flow from noise to data.

    The network of `DiT`, with its config and sizes. With learn_sigma the output layer gives
    twice the channels, of which the second half is left out.

    t: (B,) in [0, 1]; the original's paths begin with noise at 0 and end in data at 1 (Section 2.1), so that the
    straight one is sampled by
    `fastdiff.sample(lambda x, t, **cond: -model(x, 1 - t, **cond), ..., schedule="rectified-flow", prediction="flow")`.
    """

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, reuse: Reuse | None = None) -> Tensor:
        return super().forward(x, t, y, reuse=reuse)[:, : self.config.in_channels]
