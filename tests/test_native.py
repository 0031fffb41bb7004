"""How the compiled module is found: the threads that it shares with torch."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff.runtime import native

MAPS = """\
7f0000000000-7f0000001000 r-xp 00000000 08:01 11    /site/torch/lib/libtorch_cpu.so
7f0000002000-7f0000003000 rw-p 00000000 00:00 0
7f0000004000-7f0000005000 r-xp 00000000 08:01 12    /site with spaces/torch.libs/libgomp-98df74fd.so.1.0.0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere fastdiff has its own threads")
@pytest.mark.parametrize("visible", [True, False])
def test_the_openmp_runtime_of_torch_is_made_visible(monkeypatch, tmp_path, visible):
    """torch's wheels for ARM load theirs for torch alone: fastdiff could not be imported there."""

    class Library:
        def __init__(self, path, mode=ctypes.DEFAULT_MODE):
            opened.append((path, mode))
            if visible:
                self.GOMP_parallel = None

    opened = []
    maps = tmp_path / "maps"
    maps.write_text(MAPS)
    monkeypatch.setattr(native.ctypes, "CDLL", Library)
    path = "/site with spaces/torch.libs/libgomp-98df74fd.so.1.0.0"
    assert native.share_openmp(str(maps)) == (None if visible else path)
    assert opened[1:] == ([] if visible else [(path, ctypes.RTLD_GLOBAL)])


def test_without_a_runtime_nothing_is_opened(monkeypatch, tmp_path):
    (tmp_path / "maps").write_text(MAPS.splitlines()[0])
    monkeypatch.setattr(native.ctypes, "CDLL", lambda path: object())
    assert native.share_openmp(str(tmp_path / "maps")) is None
    assert native.share_openmp(str(tmp_path / "not there")) is None


def test_in_a_checkout_the_error_says_where_to_go(tmp_path):
    """There the sources, which are not compiled, hide the installed package."""
    ours = Path(native.__file__).parents[1]
    ignored = shutil.ignore_patterns("_core*", "*.safetensors", "*.png", "__pycache__")
    shutil.copytree(ours, tmp_path / "fastdiff", ignore=ignored)
    (tmp_path / "CMakeLists.txt").touch()
    # Without `site`, which would put an editable install first.
    paths = [str(tmp_path), str(Path(torch.__file__).parents[1]), *filter(None, sys.path)]
    found = subprocess.run(
        [sys.executable, "-S", "-c", "import fastdiff"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert found.returncode == 1
    last = found.stderr.splitlines()[-1]
    assert last.startswith("ImportError: fastdiff's compiled module cannot be loaded")
    assert f"from its source tree, {tmp_path / 'fastdiff'}, where nothing is compiled: run from another folder" in last
