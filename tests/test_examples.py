"""The examples of the documentation run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

FEW_STEPS = {name: ["--steps", "2"] for name in ("dreambooth", "lora", "textual_inversion")}
NEEDS = {
    "diffusers_network": "diffusers",
    "diffusers_pipeline": "diffusers",
    "lora": "peft",
    "many_samples_on_ray": "ray",
}
LONG = ("moving_emoji", "time_series")  # they train, and assert what was learnt
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=pytest.mark.long if p.stem in LONG else ()) for p in EXAMPLES]
)
def test_example(path, tmp_path):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem], reason="the example is about it")
    command = [sys.executable, str(path), *FEW_STEPS.get(path.stem, [])]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_every_example_is_in_the_documentation():
    pages = "".join(page.read_text(encoding="utf-8") for page in (EXAMPLES[0].parents[1] / "docs").rglob("*.md"))
    for path in EXAMPLES:
        assert f"examples/{path.name}" in pages, path.name
