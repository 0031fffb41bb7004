"""The files of a report: one HTML page that needs nothing else, the table as JSON and CSV, and pictures as PNG."""

from __future__ import annotations

import base64
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdiff import pictures
from fastdiff.files import replacing
from fastdiff.profiling.charts import front_sheet, speed_quality
from fastdiff.profiling.front import GOOD_SSIM, SAME_TIME, front
from fastdiff.profiling.results import MEASURES, Profile, said_of_times, to_csv
from fastdiff.profiling.settings import Setting

THUMBNAIL = 96  # pixels a side at most, of a picture in the page
COLUMNS = 12


def require() -> None:
    """Raises ImportError, which says what to install, if the report's libraries are not there."""
    missing = []
    for name, package in (("plotly", "plotly"), ("skimage", "scikit-image")):
        try:
            __import__(name)
        except ImportError:
            missing.append(package)
    if missing:
        raise ImportError(f"fastdiff profile needs {' and '.join(missing)}: pip install 'torch-fastdiff[profile]'")


def write(profile: Profile) -> None:
    """index.html, results.json, results.csv, speed-quality.png and front.png in the folder, each whole or not."""
    folder = profile.folder
    found = {
        "facts": profile.facts, "picked": profile.picked and profile.picked["slug"], "reason": profile.reason,
        "line": profile.line, "front": [row["slug"] for row in profile.front], "rows": profile.rows,
    }  # fmt: skip
    _write(folder / "results.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    _write(folder / "results.csv", to_csv(profile.rows))
    speed_quality(profile, folder / "speed-quality.png")
    front_sheet(profile, folder / "front.png")
    _write(folder / "index.html", page(profile, found))


def page(profile: Profile, found: dict[str, Any]) -> str:
    """The HTML page."""
    import jinja2
    from plotly.offline import get_plotlyjs

    template = resources.files("fastdiff.profiling").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    script = resources.files("fastdiff.profiling").joinpath("report.js").read_text(encoding="utf-8")
    strips = {slug: _strip(shown) for slug, shown in profile.shown.items()}
    converged = {slug: _strip(pictures.to_uint8(shown[:COLUMNS])) for slug, shown in profile.converged.items()}
    rows = [
        {**row, "line": profile.lines[row["slug"]], "target": Setting.from_dict(row["setting"]).target.slug}
        for row in profile.rows
    ]
    data = {
        **found, "rows": rows, "strips": strips, "converged": converged, "same_time": SAME_TIME,
        "measures": {name: {"title": title, "less": less} for name, (title, less) in MEASURES.items()},
        "fronts": {name: [row["slug"] for row in front(profile.rows, name)] for name in MEASURES},
    }  # fmt: skip
    text = json.dumps(data, allow_nan=False).replace("</", "<\\/")
    return environment.from_string(template).render(
        profile=profile,
        facts=found["facts"],
        found=found["facts"].get("find"),
        plotly=get_plotlyjs(),
        script=script,
        good_ssim=GOOD_SSIM,
        data_same_time=SAME_TIME,
        times=said_of_times(found["facts"]["times"]) if found["facts"]["times"] else "",
        data=text,
        failed=[row for row in profile.rows if row["error"]],
    )


def _strip(shown: NDArray[np.uint8]) -> dict[str, Any]:
    """A row of pictures as a PNG (small) or JPEG in a data URL: (N, H, W, 3) uint8."""
    from PIL import Image

    count, size = min(COLUMNS, len(shown)), shown.shape[1]
    as_samples = torch.from_numpy(np.ascontiguousarray(shown[:count])).permute(0, 3, 1, 2).float() / 127.5 - 1
    sheet = Image.fromarray(pictures.grid(as_samples, count, margin=2 if size <= THUMBNAIL else 4))
    kind = "PNG"
    if size > THUMBNAIL:
        height = THUMBNAIL + 4
        sheet, kind = (
            sheet.resize((round(sheet.width * height / sheet.height), height), Image.Resampling.LANCZOS),
            "JPEG",
        )
    file = io.BytesIO()
    sheet.save(file, format=kind, **({"quality": 92} if kind == "JPEG" else {"optimize": True}))  # type: ignore[arg-type]
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"url": url, "pixelated": size <= 64, "width": sheet.width, "height": sheet.height, "count": count}


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
