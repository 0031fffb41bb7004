"""What a run minimises: a network and the loss of a batch. The loop around it is in fastdiff.train.loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.train.run import Run

Network = Callable[..., Tensor]


class Objective(ABC):
    """A network and its loss on some data; the losses themselves are in fastdiff.train.losses.

    recipe: the settings of the run. fingerprint: the same for the same data, so that a run goes on with its own only.
    settings: what else a run goes on with only, by name. memory_format: of the network's weights. validated_on: of what
    the validation loss is.
    """

    settings: Mapping[str, Any] = MappingProxyType({})
    memory_format = torch.preserve_format
    validated_on = "held-out data"

    def __init__(self, recipe: Run, fingerprint: str, *, device: torch.device | str = "cpu") -> None:
        self.recipe, self.fingerprint, self.device = recipe, fingerprint, torch.device(device)

    @abstractmethod
    def make_network(self) -> nn.Module:
        """The network before its first step, from torch's generator."""

    @abstractmethod
    def loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Of one batch of `recipe.batch` samples, a scalar; all randomness from the generator, or from torch's, which
        is seeded alike."""

    @abstractmethod
    def validation_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """On what is not trained on, a scalar."""

    def prepare(self, number: int) -> None:  # noqa: B027
        """Called before `loss` with the number of its batch in the run, for data that have an order."""

    def pictures(self, network: nn.Module) -> tuple[Tensor, int] | None:
        """What shows how far the network is: pictures (N, 3 or 1, H, W) in [-1, 1], and how many are in a row; None
        where there are none."""
        return None

    def remarks(self, network: nn.Module) -> str:
        """What else is worth reporting of the averaged network beside its loss."""
        return ""

    def while_training(self) -> AbstractContextManager:
        """What loss and backward pass of a step run in; nothing, unless a subclass says otherwise."""
        return nullcontext()

    def autocast(self) -> AbstractContextManager:
        """Where the network runs in the recipe's precision."""
        half = self.recipe.precision != "float32"
        dtype = getattr(torch, self.recipe.precision) if half else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=half)

    def in_precision(self, network: Network) -> Network:
        """The network with its calls in `autocast`."""

        def call(*arguments: Any, **options: Any) -> Tensor:
            with self.autocast():
                return network(*arguments, **options)

        return call
