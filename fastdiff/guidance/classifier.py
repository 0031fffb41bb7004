"""Classifier guidance: Dhariwal & Nichol 2021, Diffusion Models Beat GANs on Image Synthesis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.arguments import described, number
from fastdiff.runtime.dispatcher import differentiable


@dataclass(frozen=True)
class Classifier:
    """eps := eps - sigma scale gradient (Dhariwal & Nichol 2021, Algorithm 2); the solver "ddpm" shifts its mean
    instead (Algorithm 1), "ltsp" and "stsp" give it steps of its own.

    gradient(x, t) -> (B, ...): the gradient of log p(y | x_t) with respect to x, for the network's time t (B,).
    Raises ValueError for a scale that is not finite, TypeError for what is no function or no number.
    """

    gradient: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.gradient):
            raise TypeError(f"gradient must be a function gradient(x, t), got {described(self.gradient)}")
        object.__setattr__(self, "scale", number("classifier scale", self.scale))

    @classmethod
    def from_logits(cls, network: Callable[[Tensor, Tensor], Tensor], labels: Tensor, scale: float = 1.0) -> Classifier:
        """From a classifier of noisy data: network(x, t) -> (B, classes) logits; labels (B,), whole numbers."""

        def gradient(x: Tensor, t: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                x, t = differentiable(x).detach().requires_grad_(), differentiable(t)
                log_p = network(x, t).log_softmax(-1).gather(1, differentiable(labels).to(x.device)[:, None])
                return torch.autograd.grad(log_p.sum(), x)[0]

        return cls(gradient, scale)
