"""`fastdiff.distributed.profile`: the sweep of `fastdiff.profile`, its settings measured by many workers.

A unit is a converged trajectory, or all rounds of one setting. A worker does it as `fastdiff.profile` does, into the
same folder: what a sweep has when it begins need not be done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from fastdiff.distributed.driver import Driver
from fastdiff.distributed.manifest import model_digest
from fastdiff.distributed.pool_choice import check, make_pool
from fastdiff.distributed.pools import Unit
from fastdiff.distributed.scheduler import Limits, Progress
from fastdiff.distributed.sweeper import REFERENCE, ROUNDS
from fastdiff.errors import expect
from fastdiff.profiling import Profile
from fastdiff.profiling import profile as profile_here
from fastdiff.profiling.store import PLAN, read_plan
from fastdiff.profiling.store import Unit as Measured
from fastdiff.profiling.sweep import Sweep


class Ahead:
    """Does the work of a sweep by other processes, before it runs. The arguments are those of `profile`."""

    def __init__(
        self, workers: int | None, threads: int | None, cluster: str | None, limits: Limits = Limits()
    ) -> None:
        self.workers, self.threads, self.cluster, self.limits = workers, threads, cluster, limits

    def __call__(self, sweep: Sweep) -> None:
        """Measure, by the workers, what the folder does not have."""
        asked = read_plan(sweep.store.folder / PLAN)["asked"]
        expect("model" in asked, "other processes need the model by its name, as module:function or file.py:function")
        job: dict[str, Any] = {
            "folder": str(sweep.store.folder.resolve()),
            "settings": [setting.to_dict() for setting in sweep.settings],
            "round_size": sweep.plan.round_size,
            "rounds": sweep.plan.rounds,
        }
        order = {"kind": "profile", "job": job}
        todo = _open(sweep)
        if not todo:
            return
        targets = list({sweep.settings[number].target: number for number in todo}.values())
        total, before = len(targets) + len(todo), 0
        here = model_digest(sweep.drawer.subject.model)

        def on_hello(who: str, hello: Mapping[str, Any]) -> None:
            expect(hello["model_sha256"] == here, f"the model of {who} has other weights than that of this process")

        def on_progress(progress: Progress) -> None:
            if sweep.on_progress is not None:
                count = len(progress.workers)
                what = f"{count} worker{'s' * (count != 1)}: {'settings' if before else 'converged trajectories'}"
                sweep.on_progress(what, before + progress.done + progress.given_up, total)

        with closing(make_pool(order, self.workers, self.threads, self.cluster, asked["device"])) as pool:
            driver = Driver(pool, self.limits, on_hello, on_progress)
            self._run(driver, sweep, [(REFERENCE, number) for number in targets])
            before = len(targets)
            self._run(driver, sweep, [(ROUNDS, number) for number in _open(sweep)])

    @staticmethod
    def _run(driver: Driver, sweep: Sweep, units: list[Unit]) -> None:
        """What fails is the error of its settings: this process must not try what ended others."""
        for number, why in driver.run(units, {}).given_up.items():
            what, index = units[number]
            setting = sweep.settings[index]
            shared = what == REFERENCE
            for each in [s for s in sweep.settings if s == setting or (shared and s.target == setting.target)]:
                for number_of_round in {0, sweep.plan.rounds - 1}:  # the last too: it is not warmed up then
                    sweep.store.save(each.slug, number_of_round, Measured(error=why))


def profile(
    model: str | None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    cluster: str | None = None,
    limits: Limits = Limits(),
    **options: Any,
) -> Profile:
    """`fastdiff.profile` whose settings are measured by worker processes, or on a Ray cluster.

    model: a name, or None to resume the sweep of one. workers: processes on this machine; threads: of each, a share of
    the cores if None. cluster: the address of a Ray cluster, or "local"; then `workers` is how many, as many as fit if
    None. options: of `fastdiff.profile`; `out` is a folder that every worker reaches. Times are those of the workers:
    settings can be compared if the workers are alike and have their cores to themselves.

    Raises what `fastdiff.profile` raises; ValueError also for workers with other versions or another model, and for a
    cluster that cannot be reached; RuntimeError if no worker can start.
    """
    expect(
        model is None or isinstance(model, str),
        "model must be a name that workers can load, such as module:function; got an object",
    )
    expect(workers is not None or cluster is not None, "give workers or cluster, or call fastdiff.profile")
    check(workers, threads)
    return profile_here(model, before=Ahead(workers, threads, cluster, limits), **options)


def _open(sweep: Sweep) -> list[int]:
    """Numbers of the settings of which the folder has neither all rounds nor an error."""
    found = []
    for number, setting in enumerate(sweep.settings):
        units = [sweep.store.load(setting.slug, round_number) for round_number in range(sweep.plan.rounds)]
        if not all(units) and not any(unit is not None and unit.error for unit in units):
            found.append(number)
    return found
