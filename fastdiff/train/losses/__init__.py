"""Training objectives, one a file: loss(network, process, batch, generator, ...) -> (B,), the loss of each sample.

network: called as `network(x, t, **cond)`. process: a `fastdiff.train.process.Process`. batch: the data (B, ...) on
the network's device. generator: all randomness of the loss, on the CPU.
"""

from fastdiff.train.losses.denoising import denoising_loss

__all__ = ["denoising_loss"]
