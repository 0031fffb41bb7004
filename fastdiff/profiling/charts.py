"""The report's pictures as PNG files, for papers and for where no browser is."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff import pictures
from fastdiff.files import replacing
from fastdiff.profiling.results import MEASURES, Profile, value_of

PLOTTED = ("rmse", "frechet")
COLUMNS = 12
MOST_NAMES = 14  # in a legend


def speed_quality(profile: Profile, path: Path) -> None:
    """Quality against time, a line a variant, the front and the row that was picked marked."""
    from matplotlib.figure import Figure

    measures = [m for m in PLOTTED if any(value_of(row, m) is not None for row in profile.rows)] or ["rmse"]
    figure = Figure(figsize=(7 * len(measures), 4.6), layout="constrained")
    for axes, measure in zip(np.atleast_1d(figure.subplots(1, len(measures))), measures):
        _plot(axes, profile, measure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _plot(axes: Any, profile: Profile, measure: str) -> None:
    known = [row for row in profile.rows if row["seconds"] and value_of(row, measure) is not None]
    for variant in dict.fromkeys(row["variant"] for row in known):
        line = sorted((r for r in known if r["variant"] == variant), key=lambda r: r["setting"]["steps"])
        x, y = [r["seconds"]["median"] for r in line], [value_of(r, measure) for r in line]
        (drawn,) = axes.plot(x, y, marker="o", markersize=4, linewidth=1, label=variant)
        if line[0][measure] and isinstance(line[0][measure], dict):
            low, high = ([r[measure][side] for r in line] for side in ("low", "high"))
            axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.12, linewidth=0)
    if measure == "rmse" and profile.front:
        x = [row["seconds"]["median"] for row in profile.front]
        axes.plot(x, [value_of(r, measure) for r in profile.front], color="0.2", linewidth=5, alpha=0.15, zorder=0)
        for reference in profile.facts["references"][:1]:
            axes.axhline(reference["error"], color="0.5", linestyle=":", label="error of the reference")
    if profile.picked is not None and value_of(profile.picked, measure) is not None:
        row = profile.picked
        axes.plot(row["seconds"]["median"], value_of(row, measure), "*", color="crimson", markersize=16, zorder=5)
        axes.annotate(
            textwrap.fill(row["label"], 32), (row["seconds"]["median"], value_of(row, measure)), (8, 8),
            textcoords="offset points", color="crimson",
        )  # fmt: skip
    axes.set(xlabel="seconds a sample", ylabel=MEASURES[measure][0], xscale="log")
    if measure == "rmse" and known:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    if 0 < len({row["variant"] for row in known}) <= MOST_NAMES:
        axes.legend(fontsize=8)
    axes.set_title(f"{profile.subject.name}, {profile.facts['samples']} samples a setting", fontsize=10)


def front_sheet(profile: Profile, path: Path) -> None:
    """A row of samples a setting of the front, the same seeds, the converged ones last."""
    from matplotlib.figure import Figure

    shown = profile.shown
    rows = [
        (f"{r['label']}\n{r['seconds']['median']:.3g} s", shown[r["slug"]]) for r in profile.front if r["slug"] in shown
    ]
    rows += [("converged", pictures.to_uint8(p)) for p in list(profile.converged.values())[:1]]
    if not rows:
        rows = [("nothing was sampled", np.full((1, 8, 8, 3), 255, np.uint8))]
    figure = Figure(figsize=(COLUMNS * 0.75 + 2, 0.8 * len(rows)), layout="constrained")
    for axes, (title, strip) in zip(np.atleast_1d(figure.subplots(len(rows), 1)), rows):
        axes.imshow(np.concatenate(list(strip[:COLUMNS]), axis=1), interpolation="nearest")
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
