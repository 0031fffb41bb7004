"""The page of `fastdiff bench time-to-quality`: bars of the factors, and pictures from the same noise."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.bench.time_to_quality import Result, Rung
from fastdiff.files import replacing

COLUMNS = 12
SIDE = 64  # pixels a side at least, of a picture in the page


def write_page(path: Path, results: Sequence[Result]) -> None:
    """One HTML file that needs no network."""
    import jinja2

    from fastdiff.cli.info import collect

    text = resources.files("fastdiff.bench").joinpath("time_to_quality.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(text).render(models=[_model(result) for result in results], machine=collect())
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _model(result: Result) -> dict[str, Any]:
    rungs = [_rung(rung, result.rungs[0]) for rung in result.rungs]
    return {
        "name": result.model, "reason": result.reason, "rungs": rungs, "whole": result.whole, "line": result.line,
        "samples": result.samples, "converged": None if result.converged is None else _strip(result.converged),
    }  # fmt: skip


def _rung(rung: Rung, start: Rung) -> dict[str, Any]:
    row = rung.row
    estimates = {name: row[name] for name in ("rmse", "frechet")} | {"ssim": row["ssim_interval"]}
    share = row["seconds"]["median"] / start.row["seconds"]["median"]
    return {
        "factor": rung.factor, "label": row["label"], "seconds": row["seconds"]["median"], "share": 100 * share,
        "noise": 100 * row["seconds"]["noise"], "calls": row["calls"], "times": rung.times,
        "strip": _strip(rung.pictures),
        **{name: _words(estimate) for name, estimate in estimates.items()},
    }  # fmt: skip


def _words(estimate: dict[str, Any] | None) -> str:
    return "" if estimate is None else f"{estimate['value']:.3g} ({estimate['low']:.3g} to {estimate['high']:.3g})"


def _strip(shown: NDArray[np.uint8]) -> str:
    """Pictures (N, H, W, 3) beside each other, as a data URL."""
    from PIL import Image

    sheet = Image.fromarray(np.concatenate(list(shown[:COLUMNS]), axis=1))
    zoom = -(-SIDE // shown.shape[1])
    sheet = sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
