"""Steps drawn by how large their losses have been (Nichol & Dhariwal 2021, Improved DDPM, Eq. 18)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.errors import expect


class LossSecondMoments:
    """Importance sampling of steps by the root of the mean square of their last losses.

    steps: T. history: losses that are kept of each step; until every step has as many, all are equally likely. uniform:
    share that is drawn uniformly. Raises ValueError unless 0 <= uniform <= 1.
    """

    def __init__(self, steps: int, *, history: int = 10, uniform: float = 0.001) -> None:
        expect(steps > 0 and history > 0, f"steps and history must be positive, got {steps} and {history}")
        expect(0 <= uniform <= 1, f"uniform must lie in [0, 1], got {uniform!r}")
        self.steps, self.uniform = steps, uniform
        self.losses = torch.zeros(steps, history, dtype=torch.float64)
        self.counts = torch.zeros(steps, dtype=torch.int64)

    def weights(self) -> Tensor:
        """(T,), float64: how likely each step is, but for a factor."""
        if bool((self.counts < self.losses.shape[1]).any()):
            return torch.ones(self.steps, dtype=torch.float64)
        weights = self.losses.square().mean(1).sqrt()
        return weights / weights.sum() * (1 - self.uniform) + self.uniform / self.steps

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Steps (count,) and the factors of their losses that keep the expectation, see `importance`."""
        steps = torch.multinomial(self.weights(), count, replacement=True, generator=generator)
        return steps, self.importance(steps)

    def importance(self, steps: Tensor) -> Tensor:
        """1 / (T p(step)), (B,)."""
        weights = self.weights()
        return 1 / (self.steps * (weights / weights.sum())[steps])

    def update(self, steps: Tensor, losses: Tensor) -> None:
        """Take note of the losses of a batch, unweighted, (B,), each of its step."""
        for step, loss in zip(steps.tolist(), losses.detach().double().tolist()):
            if self.counts[step] == self.losses.shape[1]:
                self.losses[step] = self.losses[step].roll(-1)
                self.losses[step, -1] = loss
            else:
                self.losses[step, self.counts[step]] = loss
                self.counts[step] += 1
