"""The examples of the documentation run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path):
    if path.stem.startswith("diffusers"):
        pytest.importorskip("diffusers", reason="belongs to the diffusers extra")
    result = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_every_example_is_in_the_documentation():
    pages = "".join(page.read_text(encoding="utf-8") for page in (EXAMPLES[0].parents[1] / "docs").rglob("*.md"))
    for path in EXAMPLES:
        assert f"examples/{path.name}" in pages, path.name
