"""Type checkers see the annotations of the installed package."""

import subprocess
import sys
from pathlib import Path

import pytest

import fastdiff


def test_the_marker_is_beside_the_package():
    assert (Path(fastdiff.__file__).parent / "py.typed").is_file()


def test_mypy_finds_the_wrong_type_of_an_argument(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text("import fastdiff\nfastdiff.use(3)\nreveal_type(fastdiff.CFG(2.0))\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
        "use.py",
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'has incompatible type "int"; expected "str"' in found.stdout, found.stdout + found.stderr
    assert "CFG" in found.stdout
    assert "missing library stubs or py.typed marker" not in found.stdout
