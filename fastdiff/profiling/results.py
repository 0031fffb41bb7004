"""From the units of a sweep to the rows of its table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.profiling.costs import Time
from fastdiff.profiling.distances import NEIGHBOURS, Data
from fastdiff.profiling.measures import psnr, rms
from fastdiff.profiling.settings import Setting, describe, varying
from fastdiff.profiling.store import Unit
from fastdiff.profiling.subject import Subject
from fastdiff.profiling.sweep import Sweep
from fastdiff.solvers import get_solver

DISTANCES = ("frechet", "kid", "sliced_wasserstein", "precision", "recall")
# Of what a row can be judged by: title, and whether less is better.
MEASURES = {
    "rmse": ("RMSE to the converged trajectory", True),
    "psnr": ("PSNR to the converged trajectory, dB", False),
    "ssim": ("SSIM to the converged trajectory", False),
    "frechet": ("Frechet distance to the data", True),
    "kid": ("kernel distance (KID) to the data", True),
    "sliced_wasserstein": ("sliced Wasserstein distance to the data", True),
    "precision": ("precision", False),
    "recall": ("recall", False),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Profile:
    """What came out of a sweep.

    rows: a dict for each setting, as in results.json. front: those that no other beats. picked: the row to take, why,
    and the Python that uses it. complete: whether the sweep was not interrupted. folder: of the report. facts: model,
    machine and measurement, as in results.json. lines: the Python that uses a setting, by slug. shown: the first
    samples of a setting, (N, H, W, 3) uint8, by slug. converged: pictures of the converged trajectories, (N, C, H, W),
    by the slug of the setting's target.
    """

    subject: Subject
    rows: list[Row]
    front: list[Row]
    picked: Row | None
    reason: str
    line: str
    complete: bool
    folder: Path
    facts: dict[str, Any]
    lines: dict[str, str]
    shown: dict[str, NDArray[np.uint8]]
    converged: dict[str, Tensor]


def rows_of(sweep: Sweep) -> list[Row]:
    """A row a setting, in the order of the sweep, JSON throughout; what was not measured is None."""
    data = None if sweep.extractor.data is None else Data(sweep.extractor.data)
    names, (costs, _) = varying(sweep.settings), sweep.costs()
    return [
        {"label": describe(setting, names), "variant": describe(setting, names, steps=False)}
        | _row(sweep, setting, data, None if costs is None else costs.times.get(setting.slug))
        for setting in sweep.settings
    ]


def _row(sweep: Sweep, setting: Setting, data: Data | None, time: Time | None) -> Row:
    units = [unit for _, unit in sorted(sweep.units.get(setting.slug, {}).items())]
    error = next((unit.error for unit in units if unit.error), "")
    good = [unit for unit in units if not unit.error]
    row: Row = {
        "slug": setting.slug,
        "setting": setting.to_dict(),
        "error": error,
        "rounds": len(good),
        "samples": len(good) * sweep.plan.round_size,
        "seconds": None,
        **dict.fromkeys(("calls", "evaluations", "full_calls", "rmse", "psnr", "ssim", "compared")),
        **dict.fromkeys(DISTANCES),
        "note": "",
    }
    if error or not good:
        return row
    if time is not None:
        row["seconds"] = _seconds(time, good, setting, sweep.plan.round_size)
    for key in ("calls", "evaluations", "full_calls"):
        row[key] = float(np.mean([getattr(unit, key) for unit in good]))
    _trajectory(row, setting, good, sweep)
    features = [unit.features for unit in good if unit.features is not None]
    if data is not None and features:
        x = np.concatenate(features)
        if len(x) > NEIGHBOURS + 1:
            row.update({name: asdict(estimate) for name, estimate in data.compare(x).items()})
    return row


def _seconds(time: Time, units: Sequence[Unit], setting: Setting, count: int) -> dict[str, Any]:
    """median: seconds a sample, estimated over all settings together. noise: their relative standard error. p20,
    p80: of the setting's own runs, or the estimate where it lies outside. own: whether these runs alone were taken."""
    estimated = time.seconds * -(-count // setting.batch) / count
    p20, p80 = np.percentile([unit.seconds for unit in units], (20, 80)).tolist()
    return {
        "median": estimated, "p20": min(p20, estimated), "p80": max(p80, estimated), "noise": time.noise,
        "own": time.own,
    }  # fmt: skip


def times_of(sweep: Sweep) -> dict[str, Any] | None:
    """How far the times can be trusted, JSON throughout: the spread of runs about the fit, the share of runs that
    others disturbed, how many were taken again, and how many are still too slow; None where nothing was timed."""
    costs, of = sweep.costs()
    if costs is None:
        return None
    units = [sweep.units[setting.slug][number] for setting, number in of]
    known = [unit.others for unit in units if unit.others is not None]
    return {
        "runs": len(units), "spread": costs.spread, "busy": costs.busy,
        "others": float(np.mean(known)) if known else None,
        "again": sum(unit.again > 0 for unit in units), "outliers": len(costs.outliers),
    }  # fmt: skip


def said_of_times(times: dict[str, Any]) -> str:
    """`times_of` in words."""
    words = [f"{times['runs']} runs, within {100 * times['spread']:.1f}% of what their calls explain"]
    if times["again"]:
        words.append(f"{times['again']} slow ones timed again")
    if times["outliers"]:
        words.append(f"{times['outliers']} still slower, and not counted")
    if times["busy"]:
        words.append(
            f"others used {times['others']:.1f} cores on average, and disturbed {100 * times['busy']:.0f}% of the "
            "runs: times are less certain than on a quiet machine"
        )
    elif times["others"] is None:
        words.append("whether others used the machine meanwhile is not known here")
    return "; ".join(words)


def _trajectory(row: Row, setting: Setting, units: Sequence[Unit], sweep: Sweep) -> None:
    """RMSE, PSNR and SSIM, where there is a trajectory to compare with."""
    if is_stochastic(setting):
        row["note"] = "draws noise: it has no converged trajectory"
        return
    failed = sweep.failed_references.get(setting.target)
    if failed:
        row["note"] = f"no converged trajectory: {failed}"
        return
    errors = [unit.rmse for unit in units if unit.rmse is not None]
    if not errors:
        return
    error = np.concatenate(errors)
    similar = np.concatenate([unit.ssim for unit in units if unit.ssim is not None])
    row["rmse"] = interval(error, rms)
    row["compared"] = len(error)
    decibels = float(psnr(np.array([row["rmse"]["value"]]))[0])
    row["psnr"] = decibels if math.isfinite(decibels) else None
    row["ssim"] = float(similar.mean()) if np.isfinite(similar).all() else None


def is_stochastic(setting: Setting) -> bool:
    """Whether it draws noise with the options that it has."""
    solver = get_solver(setting.solver)
    return solver.stochastic and not any(solver.options.get(key) == 0 for key in ("eta", "s_churn"))


def interval(values: np.ndarray, statistic: Any, resamples: int = 500) -> dict[str, float]:
    """A statistic of values, with the 5th and 95th percentile of its bootstrap."""
    rng = np.random.default_rng(0)
    spread = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(resamples)]
    low, high = np.percentile(spread, (5, 95)).tolist()
    return {"value": float(statistic(values)), "low": low, "high": high, "count": len(values)}


def value_of(row: Row, measure: str) -> float | None:
    """The number of a measure, None if it was not measured."""
    found = row.get(measure)
    return found["value"] if isinstance(found, dict) else found


def to_csv(rows: Sequence[Row]) -> str:
    """A line a row; estimates as three columns."""
    columns = [
        "label",
        "samples",
        "rounds",
        "seconds",
        "seconds_p20",
        "seconds_p80",
        "calls",
        "evaluations",
        "full_calls",
    ]
    columns += ["compared", "psnr", "ssim"]
    for name in ("rmse", *DISTANCES):
        columns += [name, f"{name}_low", f"{name}_high"]
    columns += ["error", "note"]
    axes = list(rows[0]["setting"]) if rows else []
    file = io.StringIO()
    writer = csv.DictWriter(file, [*axes, *columns], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        flat = {**row, **row["setting"]}
        if row["seconds"]:
            times = row["seconds"]
            flat.update(seconds=times["median"], seconds_p20=times["p20"], seconds_p80=times["p80"])
        for name in ("rmse", *DISTANCES):
            if row[name]:
                flat.update(
                    {name: row[name]["value"], f"{name}_low": row[name]["low"], f"{name}_high": row[name]["high"]}
                )
        writer.writerow(flat)
    return file.getvalue()
