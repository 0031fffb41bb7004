"""The documentation builds without a warning, by its one command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastdiff

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="belongs to the docs extra")
    folder = tmp_path_factory.mktemp("site")
    # Not as a module, which would put the sources first: they are not compiled.
    mkdocs = str(Path(sys.executable).parent / "mkdocs")
    command = [mkdocs, "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    result = subprocess.run(
        [*command, "--site-dir", str(folder)], capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_generated_tables_are_whole(site):
    page = (site / "solvers.html").read_text(encoding="utf-8")
    for names in (fastdiff.solvers.SOLVERS, fastdiff.grids.GRIDS, fastdiff.schedules.SCHEDULES):
        assert all(f"<code>{name}</code>" in page for name in names)
    assert "generated:" not in page


def test_examples_and_docstrings_are_on_their_pages(site):
    assert "my_midpoint" in (site / "write-a-solver.html").read_text(encoding="utf-8")
    assert "picture k of a seed" in (site / "quick-start.html").read_text(encoding="utf-8")
    api = (site / "api.html").read_text(encoding="utf-8")
    assert "x_init_or_shape" in api
    assert "emoji-features" in (site / "models.html").read_text(encoding="utf-8")
    assert len(list((site / "notes").glob("*.html"))) == len(list((ROOT / "docs" / "notes").glob("*.md")))
