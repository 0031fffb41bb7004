"""Drawing samples with one setting, timed, and counting what the network was asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.bench.timing import timed
from fastdiff.compiler.branches import Branches, branches_of
from fastdiff.errors import expect
from fastdiff.models.caching import Cached, Caching, is_own
from fastdiff.ops.linear_low import PRECISIONS as LOW
from fastdiff.profiling.load import watched
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.subject import Subject
from fastdiff.runtime import choice
from fastdiff.solvers import get_solver


@dataclass(frozen=True)
class Drawn:
    """samples (B, ...). seconds: of sampling them all, without decoding. calls: of the network, for one batch.
    evaluations: of the network on one sample, two a guided call. full_calls: calls that reused nothing. others: cores
    that others used meanwhile, None if unknown."""

    samples: Tensor
    seconds: float
    calls: float
    evaluations: float
    full_calls: float
    others: float | None = None


class Counted(nn.Module):
    """A network that counts its calls and the rows that it is given."""

    def __init__(self, network: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self.calls = self.rows = 0

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Any:
        self.calls += 1
        self.rows += len(x)
        return self.network(x, t, **conditions)


class Apart(nn.Module):
    """Any network, so that `fastdiff.optimize` of this leaves the network as it is, for the settings without it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Any:
        return self.network(x, t, **conditions)


class Reusing(Apart):
    """Any network with `fastdiff.optimize(reuse=)`."""

    def __init__(self, network: nn.Module, caching: Caching, precision: str) -> None:
        super().__init__(network)
        fastdiff.optimize(self, reuse=caching, precision=precision)

    @property
    def cache(self) -> Branches:
        """What is kept, with its count of calls that reused."""
        return branches_of(self)[0]


class Drawer:
    """Draws the samples of a seed: sample k starts from the same noise, with the same condition, in every setting."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self.subject, self.seed = subject, seed
        self._networks: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def with_seed(self, seed: int) -> Drawer:
        """Of other samples, by the same networks."""
        other = Drawer(self.subject, seed)
        other._networks = self._networks
        return other

    def draw(
        self, setting: Setting, first: int, count: int, callback: Callable[[int, Tensor], None] | None = None
    ) -> Drawn:
        """Samples first to first + count - 1, in batches of setting.batch."""
        counted = Counted(self.network(setting))
        cached = _cached(counted.network)
        reused = cached.cache.reused if cached else 0
        parts, seconds = [], 0.0
        with watched() as load:
            for start in range(first, first + count, setting.batch):
                size = min(setting.batch, first + count - start)
                arguments = self.arguments(setting, start, size)
                if cached:
                    cached.cache.reset()
                with using(setting), timed(self.subject.device) as elapsed:
                    parts.append(
                        fastdiff.sample(
                            counted, (size, *self.subject.shape), seed=self.seed, first_sample=start,
                            callback=callback, **arguments,
                        )
                    )  # fmt: skip
                seconds += elapsed.seconds
        batches = len(parts)
        reused = (cached.cache.reused if cached else 0) - reused
        return Drawn(
            torch.cat(parts).float(), seconds, counted.calls / batches, counted.rows / count,
            (counted.calls - reused) / batches, load.others,
        )  # fmt: skip

    def arguments(self, setting: Setting, first: int, count: int) -> dict[str, Any]:
        """Of `fastdiff.sample`, without the noise."""
        cond, uncond = self.subject.conditions_of(first, count, getattr(torch, setting.dtype))
        guidance = setting.cfg()
        expect(
            guidance is None or uncond is not None,
            f"guidance {setting.guidance:g} needs a model with a condition to leave out; profile it with guidance 1",
        )
        return {
            "schedule": self.subject.schedule,
            "prediction": self.subject.prediction,
            "solver": get_solver(setting.solver),
            "steps": setting.steps,
            "grid": setting.grid,
            "guidance": guidance,
            "threshold": setting.clip(),
            "cond": cond,
            "uncond": None if guidance is None else uncond,
        }

    def network(self, setting: Setting) -> Callable[..., Any]:
        """The model in that precision, optimised or with a cache if the setting says so; made once."""
        key = (setting.precision, setting.backend == "optimize", setting.cache)
        if key not in self._networks:
            self._networks[key] = self._make(setting)
        return self._networks[key]

    def _make(self, setting: Setting) -> Callable[..., Any]:
        model = self.subject.in_dtype(getattr(torch, setting.dtype))
        caching, low = setting.caching(), setting.precision if setting.precision in LOW else "float32"
        expect(
            low == "float32" or setting.backend == "optimize",
            f'precision {low} is part of optimize(): profile it with the backend "optimize"',
        )
        if caching is not None:
            expect(isinstance(model, nn.Module), "caching needs a torch.nn.Module")
            assert isinstance(model, nn.Module)
            if not is_own(model):
                what = f"caching in a network that is not fastdiff's own, {type(model).__name__}, is part of optimize()"
                expect(setting.backend == "optimize", f'{what}: profile it with the backend "optimize"')
                return Reusing(model, caching, low)
            model = Cached(model, caching)
        if setting.backend == "optimize":
            model = fastdiff.optimize(Apart(model) if isinstance(model, nn.Module) else model, precision=low)
        return model


def _cached(network: Callable[..., Any]) -> Cached | Reusing | None:
    """What counts the calls that reuse; None where none does."""
    if isinstance(network, Apart) and isinstance(network.network, Cached):  # optimized
        return network.network
    return network if isinstance(network, (Cached, Reusing)) else None


def using(setting: Setting) -> AbstractContextManager[None]:
    """`fastdiff.use` for the setting's backend."""
    return choice.use("auto" if setting.backend == "optimize" else setting.backend)
