"""Tests of Triton kernels run in processes of their own: whether Triton interprets is decided when it is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (it has no wheel for this platform)", allow_module_level=True)

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def compile_ahead(kernel, signature, constants):
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget(*{target!r}))
    assert any(kind in compiled.asm for kind in ("cubin", "hsaco")), list(compiled.asm)
"""


def interpret(code: str) -> None:
    """Run Python code, which must print "ok" at its end, with Triton's interpreter."""
    _run(code, {**os.environ, "TRITON_INTERPRET": "1"})


def compile_for(target: str, code: str, cache: str) -> None:
    """Run Python code, which must print "ok" at its end, with a function compile_ahead(kernel, signature, constants)
    for a target in `TARGETS`. No GPU is needed."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    _run(COMPILE.format(target=TARGETS[target]) + code, {**environment, "TRITON_CACHE_DIR": cache})


def _run(code: str, environment: dict[str, str]) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert result.stdout.strip() == "ok", result.stderr
