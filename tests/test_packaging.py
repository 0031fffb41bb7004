"""What a release is made of: one version, and wheels for what is promised."""

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

import fastdiff

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_version_stands_once():
    assert importlib.metadata.version("torch-fastdiff") == fastdiff.__version__
    assert not re.search(r'^version = "', PROJECT, re.MULTILINE)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_wheels_are_built_for_each_python_that_is_promised():
    import tomllib

    settings = tomllib.loads(PROJECT)
    promised = re.findall(r"Python :: 3\.(\d+)", " ".join(settings["project"]["classifiers"]))
    assert settings["tool"]["cibuildwheel"]["build"] == [f"cp3{minor}-*" for minor in promised]
    assert settings["project"]["requires-python"] == f">=3.{promised[0]}"


def test_the_types_are_in_the_package():
    assert (Path(fastdiff.__file__).parent / "py.typed").is_file()
