"""How the compiled module is found: the threads that it shares with torch."""

import ctypes
import sys

import pytest

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
