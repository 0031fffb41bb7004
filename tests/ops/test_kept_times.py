"""The file of times that were taken on a GPU: whole or not at all, shared, damaged, unwritable."""

import json
import warnings

import pytest
from stand_in_device import Device

from fastdiff.runtime import kept_times, tuning

pytestmark = pytest.mark.usefixtures("times_file")


def test_times_are_kept_whole(times_file):
    device = Device(ours=2e-6, torch=1e-6)
    device.tuner().decide(device.problem())
    assert [path.name for path in times_file.parent.iterdir()] == ["times.json"]
    assert json.loads(times_file.read_text()) == {"sin": {"seconds": device.seconds, "dropped": {}}}


def test_two_processes_share_the_file(times_file):
    device = Device(ours=2e-6, torch=1e-6)
    one, other = device.tuner(), device.tuner()
    for number, tuner in enumerate([one, other, one, other]):
        tuner.decide(device.problem(f"shape{number}"))
    assert json.loads(times_file.read_text()).keys() == {f"shape{number}" for number in range(4)}
    for number in range(4):
        device.tuner().decide(device.problem(f"shape{number}"))
    assert len(device.timed) == 8


@pytest.mark.parametrize("text", ['{"broken', "[1, 2]", "7", "\x00\xff", ""])
def test_a_damaged_file_is_replaced(times_file, text):
    times_file.parent.mkdir()
    times_file.write_text(text)
    device = Device(ours=2e-6, torch=1e-6)
    with pytest.warns(UserWarning, match="does not hold times") as caught:
        assert device.tuner().decide(device.problem()).name == "torch"
    assert len(caught) == 1
    assert "sin" in json.loads(times_file.read_text())


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"seconds": {}},
        {"seconds": {"ours": "1"}, "dropped": {}},
        {"seconds": {"ours": -1.0}, "dropped": {}},
        {"seconds": {"ours": float("nan")}, "dropped": {}},
        {"seconds": {}, "dropped": {"ours": None}},
    ],
)
def test_a_damaged_entry_is_timed_again(times_file, entry):
    device = Device(ours=2e-6, torch=1e-6)
    device.tuner().decide(device.problem("other"))
    times_file.write_text(json.dumps(json.loads(times_file.read_text()) | {"sin": entry}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert device.tuner().decide(device.problem()).name == "torch"
    assert json.loads(times_file.read_text()).keys() == {"sin", "other"}
    assert len(device.timed) == 4


def test_a_file_that_cannot_be_written(times_file, tmp_path):
    (tmp_path / "new").write_text("in the way of the folder")
    device = Device(ours=2e-6, torch=1e-6)
    tuner = device.tuner()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = {tuner.decide(device.problem(f"shape{number}")).name for number in range(3)}
    assert found == {"torch"}
    assert sum("kept for this process only" in str(w.message) for w in caught) == 1
    assert tuner.decide(device.problem("shape0")).name == "torch"
    assert len(device.timed) == 6


def test_the_file_is_in_the_users_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTDIFF_TUNE_FILE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept_times.path() == tmp_path / "fastdiff" / "times.json"


def test_other_versions_are_another_key(monkeypatch):
    tuning.versions.cache_clear()
    before = tuning.versions()
    for part in ("driver-", "torch-", "triton-", "fastdiff-"):
        assert part in before
    monkeypatch.setattr(tuning, "_driver", lambda: "999.1")
    tuning.versions.cache_clear()
    assert tuning.versions() != before
    tuning.versions.cache_clear()
