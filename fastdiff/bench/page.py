"""A suite's results as one HTML page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fastdiff.bench.records import Row, ratio
from fastdiff.files import replacing


def write_page(path: str | Path, suite: str, rows: Sequence[Row], **more: Any) -> None:
    """Ratios as bars with p20 to p80, scaling and convergence as curves, a table. Raises ImportError without plotly."""
    import jinja2

    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("--html needs plotly: pip install 'torch-fastdiff[profile]'") from error
    from fastdiff.cli.info import collect

    data = {"suite": suite, "rows": [{**row, "ratio": ratio(row)} for row in rows], **more}
    template = resources.files("fastdiff.bench").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(template).render(
        suite=suite,
        machine=collect(),
        device=more.get("device", "cpu"),
        plotly=get_plotlyjs(),
        data=json.dumps(data).replace("</", "<\\/"),
    )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
