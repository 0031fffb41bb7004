"""What is to be made: a job of samples, cut into units of seeds first to last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from fastdiff import arguments
from fastdiff.distributed.formats import get_format
from fastdiff.distributed.statistics import KEPT
from fastdiff.errors import expect, one_of
from fastdiff.profiling.settings import Setting
from fastdiff.solvers import get_solver

SHARD = 128  # samples of a unit
BATCH = 32


@dataclass(frozen=True)
class SampleJob:
    """Samples `first` to `first + count - 1` of a seed. What is None is the model's own.

    model: as `fastdiff.profiling.get_subject` takes it. solver to cache: see `fastdiff.profiling.Setting`. batch:
    samples at once, always as many: those of sample k are k // batch * batch and the following, whatever `first` and
    `count` are, so that roundings do not depend on how the work is cut. shard: samples of a unit, a multiple of batch.
    format: of `formats.FORMATS`. features: of `get_extractor`, None for no statistics. statistics: what is kept of
    them. device: where the model computes. prompts: sample k has prompts[k % len(prompts)], a prompt or the name of a
    class.

    Raises ValueError for what no worker could do.
    """

    model: str
    count: int
    first: int = 0
    seed: int = 0
    solver: str | None = None
    steps: int | None = None
    guidance: float | None = None
    grid: str | None = None
    precision: str = "float32"
    backend: str = "auto"
    cache: str | None = None
    batch: int = BATCH
    shard: int = SHARD
    format: str = "npz"
    features: str | None = None
    statistics: str = "features"
    device: str = "cpu"
    prompts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        arguments.whole("count", self.count, 1)
        arguments.whole("first", self.first, 0)
        arguments.whole("batch", self.batch, 1)
        arguments.whole("shard", self.shard, 1)
        arguments.seeds(self.seed, 1)
        expect(self.shard % self.batch == 0, f"shard must be a multiple of batch ({self.batch}), got {self.shard}")
        get_format(self.format)
        one_of("statistics", self.statistics, KEPT)
        expect(
            self.format != "none" or self.features is not None,
            'format "none" keeps no samples, and without features there are no statistics: nothing would be kept',
        )
        if self.solver is not None and get_solver(self.solver).adaptive:
            expect(self.steps is None, f"steps: {self.solver} chooses its own steps, got {self.steps}")
        self.setting("ddim", 1, 1.0)
        if self.prompts is not None:
            object.__setattr__(self, "prompts", _texts(self.prompts))  # a list, as JSON gives it

    def setting(self, solver: str, steps: int, guidance: float) -> Setting:
        """With these where the job leaves it to the model."""
        return Setting(
            self.solver or solver,
            steps if self.steps is None else self.steps,
            guidance=guidance if self.guidance is None else self.guidance,
            precision=self.precision,
            batch=self.batch,
            grid=self.grid,
            backend=self.backend,
            cache=self.cache,
        )

    def units(self) -> list[tuple[int, int]]:
        """(first, last) of each; all but the first and the last have `shard` samples."""
        end = self.first + self.count
        starts = range(self.first // self.shard * self.shard, end, self.shard)
        return [(max(start, self.first), min(start + self.shard, end) - 1) for start in starts]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SampleJob:
        """The opposite of to_dict. Fields that are missing have their default."""
        return cls(**data)


def _texts(prompts: Any) -> list[str]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or not all(isinstance(each, str) for each in prompts):
        raise TypeError(f"prompts must be a text or a list of texts, got {arguments.described(prompts)}")
    expect(len(prompts) > 0, "prompts must not be empty")
    return [*prompts]


DEFAULTS = {field.name: field.default for field in fields(SampleJob) if field.default is not MISSING}
