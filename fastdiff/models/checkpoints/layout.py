"""What a layout is: how one family of checkpoints names its tensors, and which model takes them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from fastdiff.errors import WeightsError

REQUIRED = object()  # the default of a field that has none: config must give it where the weights do not tell


class MissingKey(WeightsError):
    """A tensor from which a layout reads the sizes of its model is not there."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read: tensors by the names that the original code gives them, and the config that came with them.

    name: of the file, for messages. prefix: of the part that this is, which its tensors' names lack. mapped: a tensor
    of the file once more, through a mapping that goes with it: what is only read to make another tensor then leaves
    memory, as pages of the mapping behind `tensors` do not.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    name: str
    prefix: str = ""
    mapped: Callable[[str], Tensor] | None = None

    def again(self, key: str) -> Tensor:
        """A tensor that is not kept: by `mapped` where there is one."""
        return self.tensors[key] if self.mapped is None else self.mapped(self.prefix + key)

    def shape(self, key: str) -> tuple[int, ...]:
        """Raises MissingKey if there is no such tensor."""
        if key not in self.tensors:
            raise MissingKey(f"{self.name} has no {key}")
        return tuple(self.tensors[key].shape)

    def count(self, prefix: str) -> int:
        """How many modules there are in the list `prefix`, "blocks." say: 1 + the largest number after it."""
        numbers = {key[len(prefix) :].split(".", 1)[0] for key in self.tensors if key.startswith(prefix)}
        return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)

    def below(self, prefix: str) -> Checkpoint:
        """The tensors whose names begin with `prefix`, without it."""
        tensors = {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}
        return replace(self, tensors=tensors, prefix=self.prefix + prefix)


@dataclass(frozen=True)
class Derived:
    """A tensor of ours that is not one of the checkpoint's as it is: `make(*tensors of keys)`.

    A view (a chunk, say) costs no memory. Without keys: a table that the original code computes and does not store.
    """

    keys: tuple[str, ...]
    make: Callable[..., Tensor]


class Layout(ABC):
    """One family of checkpoints. An instance joins the loader by `register`, in a file of its own in this folder.

    name: what `load(layout=...)` calls it; several may share one, as those of diffusers' classes do. about: one line.
    fields: what `config` may hold, by the names of the original constructor's arguments, with their defaults. parts:
    where a file holds several models, the prefix of each one's keys by the name that `load(part=...)` takes, the
    default first; keys outside of the part are of no concern then. wrapped_as: what some files put before every key.
    markers: keys that every checkpoint of the layout has (after the part's prefix). class_name: of diffusers' class,
    where the layout is that of one.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    fields: ClassVar[Mapping[str, Any]]
    parts: ClassVar[Mapping[str, str]] = {}
    wrapped_as: ClassVar[str] = ""
    markers: ClassVar[tuple[str, ...]]
    class_name: ClassVar[str | None] = None

    def detect(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint, a part of it already taken, is of this layout."""
        if "_class_name" in checkpoint.config:
            return checkpoint.config["_class_name"] == self.class_name
        return all(key in checkpoint.tensors for key in self.markers)

    def fits(self, checkpoint: Checkpoint) -> bool:
        """As detect, but for a checkpoint of which the user says that it is of a layout of this name."""
        return self.detect(checkpoint)

    @abstractmethod
    def infer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The fields that the tensors' shapes tell; those of `config` are compared with them."""

    @abstractmethod
    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The model, for all of `fields`; run on the meta device, so that values are neither made nor needed.

        Tables that are no part of the model's state dict must be made in `forward` or on the device "cpu".
        """

    @abstractmethod
    def original(self, name: str, config: Mapping[str, Any]) -> str | Derived:
        """Where the tensor `name` of our model's state dict comes from: a key of the checkpoint's, or derived."""

    def inform(self, model: nn.Module, checkpoint: Checkpoint) -> None:  # noqa: B027
        """Give a loaded model what its config says beside its shape, such as the schedule that it was trained on."""

    def unused(self, key: str, config: Mapping[str, Any]) -> bool:
        """Whether nothing is computed with this tensor of the checkpoint (a buffer that training needs, say)."""
        return False


def renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """name after the first rule (a regular expression for its beginning, and what takes its place) that fits it."""
    for pattern, replacement in rules:
        after, changes = re.subn(f"^(?:{pattern})", replacement, name)
        if changes:
            return after
    return name


LAYOUTS: list[Layout] = []


def register(layout: type[Layout]) -> type[Layout]:
    """Let `load` know a layout; a class decorator."""
    LAYOUTS.append(layout())
    return layout
