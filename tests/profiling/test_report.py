"""The report in a real browser: nothing in its console, the plot and the pictures there, and no request to anywhere."""

import html
import json
import re

import pytest
import torch
import toy
from browser import NEEDS_BROWSER, browse

import fastdiff


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, *toy.SHAPE, generator=generator).clamp(-1, 1)
    found = fastdiff.profile(
        toy.subject, solvers=["ddim", "dpmpp-2m", "ddpm"], steps=[3, 6], batches=[2, 3], samples=12, reference_steps=64,
        data=data, out=folder,
    )  # fmt: skip
    return found, folder / "index.html"


@NEEDS_BROWSER
def test_the_page_works_in_a_browser(report):
    found, page = report
    document, log = browse(page)
    assert "CONSOLE" not in log, [line for line in log.splitlines() if "CONSOLE" in line]
    text = html.unescape(document)
    body = text[: text.index('<script type="application/json"')]
    assert body.count('class="scatterlayer') == 1  # drawn by plotly
    traces = len(re.findall(r'<g class="trace scatter', body))
    assert traces == 1 + 2 + 1  # the front, a line a solver that has a trajectory, the recommendation
    assert found.picked["label"] in body[body.index('id="answer-label"') :][:200]
    assert found.line in body
    shown = re.findall(r'<img class="strip[^>]*src="data:image/png;base64,([^"]{100})', body)
    assert len(shown) >= len(found.front) + 2
    rows = body[body.index("<tbody>") : body.index("</tbody>")]
    assert rows.count("<tr") == len(found.rows) == 12
    assert rows.count("batches of 3 are too much") == 6


def test_the_page_needs_no_network(report):
    _, page = report
    text = page.read_text(encoding="utf-8")
    plotly = max(re.findall(r"<script>(.*?)</script>", text, re.S), key=len)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)[^"']""", text.replace(plotly, ""))
    assert "fetch(" not in text.replace(plotly, "")


@NEEDS_BROWSER
def test_a_model_name_cannot_run_as_script(tmp_path):
    """Names and messages of errors come from outside."""

    class Bad(toy.Toy):
        def forward(self, x, t, **_):
            raise ValueError("</script><script>document.title='broken'</script>")

    subject = fastdiff.profiling.Subject("<b>x</b></script>", Bad(), toy.SHAPE, toy.SCHEDULE, "eps")
    found = fastdiff.profile(subject, solvers=["ddim"], steps=[2], samples=3, reference_steps=8, out=tmp_path)
    assert found.picked is None
    document, log = browse(tmp_path / "index.html")
    assert "CONSOLE" not in log
    assert "<title>broken" not in document
    assert "<b>x</b>" not in document


def test_the_data_in_the_page_is_json(report):
    found, page = report
    text = page.read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert [row["slug"] for row in data["rows"]] == [row["slug"] for row in found.rows]
    assert data["picked"] == found.picked["slug"]
