"""Tiles that are timed: only where it is asked for, once, and kept in a file. In Triton's interpreter; no GPU."""

import json
import os

import pytest
from triton_process import interpret

CODE = """
import os, pathlib, warnings, torch
from fastdiff.kernels import tuning
from fastdiff.kernels.attention import attention_forward
from fastdiff.kernels.attention_backward import attention_backward
timed = []
seconds = tuning._seconds
tuning._seconds = lambda run, device: timed.append(1) or seconds(run, device)
torch.manual_seed(0)
q, k, v = (torch.randn(1, 1, 4, 160) for _ in range(3))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    out, lse = attention_forward(q, k, v)
    first = attention_backward(torch.ones_like(out), q, k, v, out, lse)
count = len(timed)
again, _ = attention_forward(q, k, v)
assert len(timed) == count and torch.equal(out, again)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDIFF_TILES", str(tmp_path / "new" / "tiles.json"))
    monkeypatch.delenv("FASTDIFF_AUTOTUNE", raising=False)
    return tmp_path / "new" / "tiles.json"


def test_nothing_is_timed_unless_it_is_asked_for(file):
    interpret(CODE + "assert count == 0\nprint('ok')")
    assert not file.exists()


def test_choices_are_kept(file, monkeypatch):
    monkeypatch.setenv("FASTDIFF_AUTOTUNE", "1")
    interpret(CODE + "assert count >= 3 and not caught, count\nprint('ok')")
    kept = json.loads(file.read_text())
    assert {key.split("attention ")[1].split()[0] for key in kept} == {"forward", "dq", "dkv"}
    assert os.listdir(file.parent) == [file.name]
    interpret(CODE + "assert count == 0, count\nprint('ok')")
    file.write_text('{"broken')
    interpret(CODE + "assert count >= 3 and 'does not hold tiles' in str(caught[0].message)\nprint('ok')")
    assert json.loads(file.read_text()).keys() == kept.keys()
