"""Tiles that are timed: only where it is asked for, once, and kept in a file. In Triton's interpreter; no GPU."""

import json
import os

import pytest
from triton_process import interpret


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDIFF_TILES", str(tmp_path / "new" / "tiles.json"))
    monkeypatch.delenv("FASTDIFF_AUTOTUNE", raising=False)
    return tmp_path / "new" / "tiles.json"


def test_nothing_is_timed_unless_it_is_asked_for(file):
    interpret("tuning", "times", "0", "0")
    assert not file.exists()


def test_choices_are_kept(file, monkeypatch):
    monkeypatch.setenv("FASTDIFF_AUTOTUNE", "1")
    interpret("tuning", "times", "3", "99")
    kept = json.loads(file.read_text())
    assert {key.split("attention ")[1].split()[0] for key in kept} == {"forward", "dq", "dkv"}
    assert os.listdir(file.parent) == [file.name]
    interpret("tuning", "times", "0", "0")
    file.write_text('{"broken')
    interpret("tuning", "times", "3", "99", "does not hold tiles")
    assert json.loads(file.read_text()).keys() == kept.keys()
