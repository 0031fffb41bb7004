"""What a run minimises: a network and the loss of a batch. The loop around it is in fastdiff.train.loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.train.run import Run

Network = Callable[..., Tensor]


class Objective(ABC):
    """A network and its loss on some data; the losses themselves are in fastdiff.train.losses.

    recipe: the settings of the run. fingerprint: the same for the same data, so that a run goes on with its own only.
    memory_format: of the network's weights.
    """

    memory_format = torch.preserve_format

    def __init__(self, recipe: Run, fingerprint: str, *, device: torch.device | str = "cpu") -> None:
        self.recipe, self.fingerprint, self.device = recipe, fingerprint, torch.device(device)

    @abstractmethod
    def make_network(self) -> nn.Module:
        """The network before its first step, from torch's generator."""

    @abstractmethod
    def loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Of one batch of `recipe.batch` samples, a scalar; all randomness from the generator."""

    @abstractmethod
    def validation_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """On what is not trained on, a scalar."""

    def while_training(self) -> AbstractContextManager:
        """What loss and backward pass of a step run in; nothing, unless a subclass says otherwise."""
        return nullcontext()

    def autocast(self) -> AbstractContextManager:
        """Where the network runs in the recipe's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def in_precision(self, network: Network) -> Network:
        """The network with its calls in `autocast`."""

        def call(*arguments: Any, **options: Any) -> Tensor:
            with self.autocast():
                return network(*arguments, **options)

        return call
