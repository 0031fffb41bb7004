"""Any network on any data, with any of the losses, as an objective."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.errors import expect, unknown
from fastdiff.models.unet import UNet
from fastdiff.train.data import Data, Samples
from fastdiff.train.losses import LOSSES
from fastdiff.train.objective import Objective
from fastdiff.train.process import Process
from fastdiff.train.run import Run

Loss = Callable[..., Tensor]
HELD_OUT_EVERY = 25  # of each 25 samples one is kept for validation, where there are that many
VALIDATED = 256  # samples, at most
SHOWN = 16  # pictures


class NetworkObjective(Objective):
    """A network that was given, on data that were given.

    loss: a name in `fastdiff.train.losses.LOSSES`, or a function (network, process, batch, generator, **cond) that
    returns the loss of each sample, (B,), or their mean. process: what the network predicts on which schedule. uncond:
    the arguments that stand for "no condition", by name, for classifier-free guidance; a share `dropout` of the samples
    is trained with them. mirror: half of the pictures are mirrored.

    Raises ValueError for an unknown loss, and what the loss raises for a process that it does not know.
    """

    def __init__(
        self,
        recipe: Run,
        network: nn.Module,
        data: Data,
        process: Process,
        *,
        loss: str | Loss = "denoising",
        uncond: Mapping[str, Any] | None = None,
        dropout: float = 0.1,
        mirror: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(recipe, data.fingerprint, device=device)
        self.network, self.process, self.given_loss = network, process, get_loss(loss, process)
        expect(0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout!r}")
        if isinstance(network, UNet):
            self.memory_format = torch.channels_last
        self.uncond, self.dropout, self.mirror = dict(uncond or {}), dropout, mirror
        key = hashlib.sha256(repr(process.schedule.key).encode()).hexdigest()[:8]
        self.settings = {
            "loss": loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__name__),
            "schedule": f"{process.schedule.name} {key}", "prediction": process.prediction.name,
            "dropout": dropout if uncond else 0.0, "mirror": mirror,
        }  # fmt: skip
        self.data, held = data, data
        if isinstance(data, Samples) and len(data) >= HELD_OUT_EVERY:
            self.data, held = data.parted(HELD_OUT_EVERY)
        else:
            self.validated_on = "some of the data"
        self.held_out = held.example(VALIDATED)
        self.shape = tuple(self.held_out[0].shape[1:])
        self._number = 0

    def make_network(self) -> nn.Module:
        """The network that was given."""
        return self.network

    def prepare(self, number: int) -> None:
        """See `Objective.prepare`."""
        self._number = number

    def loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Of the batch that was prepared."""
        x0, cond = self.data.batch(self._number, self.recipe.batch)
        if self.mirror:
            flipped = torch.rand(len(x0), generator=generator) < 0.5
            x0 = torch.where(flipped.view(-1, *[1] * (x0.ndim - 1)), x0.flip(-1), x0)
        if self.uncond:
            dropped = torch.rand(len(x0), generator=generator) < self.dropout
            cond = {name: self._without(name, value, dropped) for name, value in cond.items()}
        return self._loss(network, x0, cond, generator)

    def validation_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """The loss of what is held out, batch by batch."""
        x0, cond = self.held_out
        total = torch.zeros(())
        for first in range(0, len(x0), self.recipe.batch):
            rows = slice(first, first + self.recipe.batch)
            part = {name: value[rows] for name, value in cond.items()}
            with torch.inference_mode(False), torch.enable_grad():  # which score matching needs
                loss = self._loss(network, x0[rows], part, generator)
            total += loss.detach().cpu() * len(x0[rows])
        return total / len(x0)

    def pictures(self, network: nn.Module) -> tuple[Tensor, int] | None:
        """Samples of the conditions of what is held out, always of the same noise; None for data of another form."""
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
            return None
        _, cond = self.held_out
        count = min([SHOWN, *(len(value) for value in cond.values())])
        with torch.inference_mode():
            samples = fastdiff.sample(
                network, (count, *self.shape), schedule=self.process.schedule, prediction=self.process.prediction,
                steps=20, cond={name: value[:count].to(self.device) for name, value in cond.items()}, seed=0,
            )  # fmt: skip
        return samples, min(count, 4)

    def _loss(self, network: nn.Module, x0: Tensor, cond: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        cond = {name: value.to(self.device) for name, value in cond.items()}
        x0 = x0.to(self.device)
        if x0.ndim == 4 and self.memory_format is not torch.preserve_format:
            x0 = x0.contiguous(memory_format=self.memory_format)
        return self.given_loss(self.in_precision(network), self.process, x0, generator, **cond).mean()

    def _without(self, name: str, value: Tensor, dropped: Tensor) -> Tensor:
        """Rows that are dropped hold what stands for no condition."""
        if name not in self.uncond:
            return value
        none = torch.as_tensor(self.uncond[name], dtype=value.dtype).expand_as(value)
        return torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), none, value)


def get_loss(loss: str | Loss, process: Process) -> Loss:
    """The loss of that name, or the function itself. Raises ValueError for an unknown name, and what a loss with a name
    raises for a process that it does not know."""
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)

    def zeros(x: Tensor, t: Tensor) -> Tensor:
        return (torch.cat([x, x], dim=1) if process.prediction.split else x) * 0

    LOSSES[loss](zeros, process, torch.zeros(2, 1, 2, 2), torch.Generator().manual_seed(0))
    return LOSSES[loss]
