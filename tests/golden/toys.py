"""The cases of editing.json, and the exact models of their data: mixtures of Gaussians, with and without a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from folder import FOLDER, cases
from torch import Tensor

from fastdiff.schedules import Point, VPDiscrete, VPLinear

EDITING = cases("editing") or {}
ARRAYS: Any = np.load(FOLDER / "editing.npz") if EDITING else {}
SCHEDULES: dict[str, Callable[[], VPDiscrete]] = {
    "linear": VPDiscrete.linear,
    "scaled_linear": VPDiscrete.scaled_linear,
    "cosine": VPDiscrete.cosine,
}
VARIANCES = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED_RANGE": "learned"}


class TimedVP(VPLinear):
    """Whose network receives 999 t."""

    def model_time(self, t: float) -> float:
        return 999 * t


class EditingCase:
    """One case: its metadata as attributes, None where a key is absent, and its arrays by name as tensors.

    read: names of the arrays that were asked for. What is not read must be computed.
    """

    def __init__(self, name: str) -> None:
        self.name, self.meta = name, EDITING[name]
        self.read: set[str] = set()

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        return self.meta.get(key)

    @property
    def arrays(self) -> set[str]:
        """Names of all that is stored."""
        return {key.removeprefix(f"{self.name}/") for key in ARRAYS if key.startswith(f"{self.name}/")}

    def __getitem__(self, array: str) -> Tensor:
        self.read.add(array)
        return self.expected(array)

    def expected(self, array: str) -> Tensor:
        """The array, which is to be compared with."""
        return torch.from_numpy(ARRAYS[f"{self.name}/{array}"])

    def __contains__(self, array: str) -> bool:
        return f"{self.name}/{array}" in ARRAYS

    @property
    def process(self) -> VPDiscrete:
        """The schedule of the case's name, of 1000 steps."""
        return SCHEDULES[self.meta["schedule"]]()

    @property
    def toy(self) -> Toy:
        """The exact model that the case names."""
        return Toy(self.meta["model"])


class Toy:
    """A mixture of isotropic Gaussians. calls: the times of the network's calls, in order."""

    def __init__(self, name: str) -> None:
        self.means, self.stds, self.weights, self.text = (
            torch.from_numpy(ARRAYS[f"toy/{name}/{key}"]) for key in ("means", "stds", "weights", "U")
        )
        self.shape = tuple(int(n) for n in ARRAYS[f"toy/{name}/shape"])
        self.calls: list[float] = []

    def x0(self, x: Tensor, alpha: float, sigma: float, context: Tensor | None = None) -> Tensor:
        """E[x0 | x], (B, ...)."""
        flat = x.reshape(len(x), 1, -1)
        v = alpha**2 * self.stds**2 + sigma**2
        centred = flat - alpha * self.means
        logits = self.weights.log() - centred.square().sum(-1) / (2 * v) - flat.shape[-1] / 2 * v.log()
        if context is not None:
            logits = logits + context.reshape(len(context), -1) @ self.text.T
        means = self.means + (alpha * self.stds**2 / v)[:, None] * centred
        return (logits.softmax(1)[..., None] * means).sum(1).reshape(x.shape)

    def eps(self, x: Tensor, alpha: float, sigma: float, context: Tensor | None = None) -> Tensor:
        """The exact noise."""
        return (x - alpha * self.x0(x, alpha, sigma, context)) / sigma

    def network(self, point: Callable[[float], Point], *, variance: bool = False) -> Callable[..., Tensor]:
        """model(x, t, context=None) -> eps, with tanh(x) beside it for a learned variance. point(t): alpha, sigma."""

        def model(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
            self.calls.append(float(t[0]))
            p = point(float(t[0]))
            out = self.eps(x, p.alpha, p.sigma, context)
            return torch.cat([out, x.tanh()], 1) if variance else out

        return model


def times_of(kept: list[int], total: int = 1000) -> np.ndarray:
    """The grid of the kept training steps, and the data."""
    return np.array([(n + 1) / total for n in reversed(kept)] + [0.0])
