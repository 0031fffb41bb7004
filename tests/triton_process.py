"""Tests of Triton kernels run in processes of their own: whether Triton interprets is decided when it is imported.

Programs are functions of the modules in tests/triton_programs, which are given strings.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

TARGETS = ["sm_90", *(pytest.param(name, marks=pytest.mark.long) for name in ("sm_80", "sm_100", "gfx942"))]
PROGRAMS = Path(__file__).parent / "triton_programs"
RUN = "import importlib, sys; getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])"


def interpret(program: str, function: str, *arguments: str) -> None:
    """Run a function of a program with Triton's interpreter."""
    _run([program, function, *arguments], {**os.environ, "TRITON_INTERPRET": "1"})


def compile_ahead(program: str, target: str, function: str = "compiles") -> None:
    """Run `compiles(target)`, or another function, of a program, which compiles ahead of time. No GPU is needed.

    In Triton's own cache, so that a kernel is compiled once for all tests, and by later runs not at all.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    _run([program, function, target], environment)


def _run(arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", RUN, *arguments]
    result = subprocess.run(
        command, cwd=PROGRAMS, capture_output=True, text=True, check=False, env=environment
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
