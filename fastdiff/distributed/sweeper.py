"""What a worker does for a profile: measure settings into the folder of the sweep."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastdiff.distributed.manifest import model_digest, versions
from fastdiff.distributed.pools import Unit
from fastdiff.errors import expect
from fastdiff.profiling import Setting, get_extractor, get_subject
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.plan import Plan
from fastdiff.profiling.store import PLAN, Store, read_plan
from fastdiff.profiling.sweep import Sweep

REFERENCE, ROUNDS = "reference", "rounds"


class Sweeper:
    """What a worker does. job: {"folder", "settings", "round_size", "rounds"}; the rest is in the folder's plan.

    Raises ValueError if it does not find the plan.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        folder = job["folder"]
        expect(
            os.path.isfile(os.path.join(folder, PLAN)),
            f"the worker on {socket.gethostname()} does not find the sweep in {folder}; every worker must reach the "
            "same folder",
        )
        self.store = Store(folder)
        plan = read_plan(self.store.folder / PLAN)
        asked = plan["asked"]
        self.subject = get_subject(asked["model"], device=asked["device"])
        features = asked.get("features") or self.subject.features or "pixels"
        self.extractor = get_extractor(features, device=self.subject.device)
        self.drawer = Drawer(self.subject, asked["seed"])
        self.reference_steps = asked["reference_steps"]
        self.settings = [Setting.from_dict(each) for each in job["settings"]]
        self.plan = Plan(job["round_size"], job["rounds"], 0.0)

    def hello(self) -> dict[str, Any]:
        """What the driver asks of a worker before it gets work."""
        place = f"{socket.gethostname()}, process {os.getpid()}"
        return {"versions": versions(), "model_sha256": model_digest(self.subject.model), "place": place}

    def make(self, unit: Unit) -> dict[str, Any]:
        """(REFERENCE or ROUNDS, number of a setting): its trajectory, or all of it, into the folder."""
        what, number = unit
        setting, plan = self.settings[number], self.plan
        if what == REFERENCE:  # of the target itself, so that the setting is not tried yet, which may fail
            setting, plan = setting.target, replace(plan, rounds=0)
        Sweep(self.drawer, self.store, [setting], plan, self.extractor, self.reference_steps).run()
        return {}
