"""Stores: folders and URLs, whole files or none, stores that fail now and then."""

import errno
import os

import pytest

from fastdiff.distributed.storage import Folder, Patient, Remote, open_storage
from fastdiff.files import WRITING


@pytest.fixture(params=["folder", "file", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        return open_storage(tmp_path / "out")
    pytest.importorskip("fsspec")
    if request.param == "memory":
        return open_storage(f"memory://{tmp_path.name}")
    return Remote(f"file://{tmp_path}/out")


def test_what_is_written_is_read(store):
    with store.alone():
        store.write("a/b.txt", b"first")
        store.write("a/b.txt", b"second")
        store.write("c.txt", b"")
        assert store.read("a/b.txt") == b"second"
        assert store.sizes("a") == {"a/b.txt": 6}
        assert store.sizes("nothing") == {}
        with pytest.raises(FileNotFoundError):
            store.read("a/c.txt")


def test_a_folder_s_parts_are_not_files_and_are_removed(tmp_path):
    store = Folder(tmp_path)
    store.write("samples/1.npz", b"12")
    (tmp_path / "samples" / f"{WRITING}2-x.npz").write_bytes(b"1")
    assert store.sizes("samples") == {"samples/1.npz": 2}
    with store.alone():
        assert os.listdir(tmp_path / "samples") == ["1.npz"]


def test_a_remote_store_shows_no_part_of_a_file(tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    store = Remote(f"file://{tmp_path}/out")

    def torn(source, target):
        raise OSError("connection lost")

    monkeypatch.setattr(store.system, "mv", torn)
    with pytest.raises(OSError, match="connection lost"):
        store.write("samples/1.npz", b"12")
    assert store.sizes("samples") == {}


def test_two_drivers_cannot_have_one_folder(tmp_path):
    with Folder(tmp_path).alone(), pytest.raises(ValueError, match="in use by another fastdiff"):
        Folder(tmp_path).alone().__enter__()


class Failing(Folder):
    """Fails the first `times` times."""

    def __init__(self, path, times, number=errno.EIO):
        super().__init__(path)
        self.left, self.number = times, number

    def write(self, name, content):
        if self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number), name)
        super().write(name, content)


def test_a_store_that_fails_now_and_then_is_tried_again(tmp_path):
    waits = []
    store = Patient(Failing(tmp_path, 3), waits.append)
    store.write("a", b"1")
    assert store.read("a") == b"1"
    assert waits == [0.2, 0.4, 0.8]
    with pytest.raises(OSError, match="Input/output error"):
        Patient(Failing(tmp_path, 4), waits.append).write("a", b"1")


def test_nobody_waits_for_a_full_disk(tmp_path):
    waits = []
    with pytest.raises(OSError, match="No space left"):
        Patient(Failing(tmp_path, 1, errno.ENOSPC), waits.append).write("a", b"1")
    assert waits == []


def test_an_unknown_protocol_is_refused():
    pytest.importorskip("fsspec")
    with pytest.raises(ValueError, match="cannot open nowhere://x"):
        open_storage("nowhere://x")
