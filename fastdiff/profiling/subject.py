"""What is profiled: a model with its schedule, the shape of its samples and its conditions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import expect
from fastdiff.models.info import resolve
from fastdiff.process.prediction import Prediction
from fastdiff.process.schedules import Schedule

# (number of the first sample, how many) -> (cond, uncond); uncond is None where there is no guidance to be had.
Conditions = Callable[[int, int], "tuple[dict[str, Any], dict[str, Any] | None]"]


@dataclass(frozen=True)
class Subject:
    """A model as `fastdiff.profile` takes it; what an entry point `module:function` returns.

    model(x, t, **cond). shape: of one sample, (C, H, W). schedule, prediction: as for `fastdiff.sample`. conditions:
    (first, count) -> (cond, uncond) for samples first to first + count - 1, always the same for one sample; None for an
    unconditional model. decode: from samples to pictures (B, 3 or 1, H, W) in [-1, 1], for latent models; encode: from
    pictures to samples, for commands that start from one. guidance: the scale that is profiled if none is named; 1 is
    none. code: a line of Python that makes `subject`, for the line that uses a setting; without one that line expects
    the name `subject`. bundled: whether `fastdiff.load(name)` gives the model, with `model.info.condition`. teacher: of
    a distilled model, with the guidance that is distilled; samples are compared with its converged trajectory. axes:
    values that are profiled if none are named, by the names of `fastdiff.profiling.settings.Axes`.

    `decode` gets samples where the model is; what it decodes with must be there too. An entry point that makes the
    model elsewhere than on the CPU has an argument `device`, a torch.device, which it is called with.
    """

    name: str
    model: Callable[..., Any]
    shape: tuple[int, ...]
    schedule: Schedule | str | None = None
    prediction: Prediction | str | None = None
    conditions: Conditions | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    encode: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)
    guidance: float = 1.0
    features: str | None = None
    code: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    bundled: bool = False
    teacher: Subject | None = None
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        schedule, prediction = resolve(self.model, self.schedule, self.prediction)
        object.__setattr__(self, "schedule", schedule)
        object.__setattr__(self, "prediction", prediction)
        expect(
            isinstance(self.shape, Sequence)
            and len(self.shape) >= 1
            and all(isinstance(n, int) and n > 0 for n in self.shape),
            f"shape must be that of one sample, e.g. (3, 32, 32), got {self.shape!r}",
        )

    def conditions_of(
        self, first: int, count: int, dtype: torch.dtype | None = None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """(cond, uncond) of these samples, where the model is; dtype: of the floating-point tensors among them, theirs
        if None."""
        cond, uncond = ({}, None) if self.conditions is None else self.conditions(first, count)
        return _moved(cond, self.device, dtype), None if uncond is None else _moved(uncond, self.device, dtype)

    def in_dtype(self, dtype: torch.dtype) -> Callable[..., Any]:
        """The model itself in float32, which is taken as it is; in another dtype a copy."""
        if dtype == torch.float32:
            return self.model
        name = str(dtype).removeprefix("torch.")
        expect(isinstance(self.model, nn.Module), f"precision {name} needs a torch.nn.Module")
        return copy.deepcopy(self.model).to(dtype)  # type: ignore[attr-defined, no-any-return]

    def to(self, device: torch.device) -> Subject:
        """The same with its model on the device. Raises ValueError for a model that cannot be moved."""
        if self.device == device:
            return self
        if not isinstance(self.model, nn.Module):
            raise ValueError(f"model {self.name!r} is a {type(self.model).__name__}, which cannot be moved to {device}")
        self.model.to(device)
        if self.teacher is not None:
            self.teacher.to(device)
        return self

    def require_pictures(self) -> None:
        """Raises ValueError, before anything is sampled, if `pictures` could not take the samples."""
        if self.decode is None:
            self.pictures(torch.zeros(1, *self.shape, device="cpu"))

    def pictures(self, samples: Tensor) -> Tensor:
        """Samples as pictures (B, 3 or 1, H, W)."""
        if self.decode is not None:
            with torch.no_grad():
                samples = self.decode(samples.to(self.device))
        expect(
            samples.ndim == 4 and samples.shape[1] in (1, 3),
            f"pictures must be (B, 3 or 1, H, W), got {tuple(samples.shape)}; a model of anything else needs `decode`",
        )
        return samples.float()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        parameters = self.model.parameters() if isinstance(self.model, nn.Module) else iter(())
        return next((p.device for p in parameters), torch.device("cpu"))


def _moved(conditions: dict[str, Any], device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
    """The tensors on the device, and in the dtype if they are of floating point and it is given."""
    return {
        key: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for key, value in conditions.items()
    }


def device_argument(device: torch.device | None) -> str:
    """The further argument of a call in a line of Python; nothing for the CPU."""
    return "" if device is None or device.type == "cpu" else f", device={str(device)!r}"
