"""Where results are kept: a folder, or any URL that fsspec opens. Files appear whole or not at all."""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from fastdiff.files import WRITING, locked, remove_parts, replacing, writable_folder

TRIES = 4
FIRST_WAIT = 0.2  # seconds before the second try; each further wait is twice as long
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
# Object stores, where a file is there only when it was sent whole; elsewhere it is renamed when it is whole.
WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "r2", "memory"}


class Storage(Protocol):
    """Files by their names, "folder/file". Every method raises OSError that names the store."""

    name: str

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all, in place of what is there."""

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError if there is no such file."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Name -> bytes of every file in the folder and the folders in it."""

    def alone(self) -> AbstractContextManager[None]:
        """Inside the block no other driver of this machine works with the store, where the store has locks."""


class Folder:
    """A folder, local or shared by the machines."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self.name = str(self.path)

    def write(self, name: str, content: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def sizes(self, folder: str) -> dict[str, int]:
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in self._files(self.path / folder)}

    def alone(self) -> AbstractContextManager[None]:
        return _alone(writable_folder(self.path))

    @staticmethod
    def _files(folder: Path) -> Iterator[Path]:
        return (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(WRITING))


class _alone(AbstractContextManager[None]):
    """The lock of a folder; parts of files that killed workers left are removed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, locked(folder)

    def __enter__(self) -> None:
        self.lock.__enter__()
        for inner in [path for path in self.folder.rglob("*") if path.is_dir()]:
            remove_parts(inner)

    def __exit__(self, *error: Any) -> None:
        self.lock.__exit__(*error)


class Remote:
    """What fsspec opens: s3://, gs://, sftp://, memory://, ... It has no lock: one driver at a time is up to its
    user."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise ImportError(f'{url} needs fsspec: pip install "torch-fastdiff[remote]"') from error
        self.name = url.rstrip("/")
        try:
            self.system, self.root = fsspec.core.url_to_fs(self.name)
        except (ImportError, ValueError) as error:  # of a package such as s3fs, or of an unknown protocol
            raise type(error)(f"cannot open {url}: {error}") from error

    def write(self, name: str, content: bytes) -> None:
        path = f"{self.root}/{name}"
        protocols = self.system.protocol
        whole = bool(WHOLE & {protocols, *(() if isinstance(protocols, str) else protocols)})
        folder, file = str(PurePosixPath(path).parent), PurePosixPath(path).name
        self.system.makedirs(folder, exist_ok=True)
        if whole:
            self.system.pipe_file(path, content)
            return
        part = f"{folder}/{WRITING}{uuid.uuid4().hex}-{file}"
        try:
            self.system.pipe_file(part, content)
            self.system.mv(part, path)
        finally:
            if self.system.exists(part):
                self.system.rm_file(part)

    def read(self, name: str) -> bytes:
        return bytes(self.system.cat_file(f"{self.root}/{name}"))

    def sizes(self, folder: str) -> dict[str, int]:
        self.system.invalidate_cache()
        try:
            found = self.system.find(f"{self.root}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.root) + 1
        return {
            path[start:]: about["size"]
            for path, about in found.items()
            if not PurePosixPath(path).name.startswith(WRITING)
        }

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()


class Patient:
    """A store that fails now and then: reads and writes are tried again, after longer and longer waits. A full disk is
    not: waiting does not empty it."""

    def __init__(self, store: Storage, sleep: Callable[[float], None] = time.sleep) -> None:
        self.store, self.sleep, self.name = store, sleep, store.name

    def write(self, name: str, content: bytes) -> None:
        self._try(lambda: self.store.write(name, content))

    def read(self, name: str) -> bytes:
        return self._try(lambda: self.store.read(name))

    def sizes(self, folder: str) -> dict[str, int]:
        return self._try(lambda: self.store.sizes(folder))

    def alone(self) -> AbstractContextManager[None]:
        return self.store.alone()

    def _try(self, action: Callable[[], Any]) -> Any:
        for number in range(TRIES):
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in FULL or number == TRIES - 1:
                    raise
                self.sleep(FIRST_WAIT * 2**number)


def open_storage(out: str | Path) -> Storage:
    """A folder's path, or a URL that fsspec opens; file:// is a folder. Raises ImportError that names what is missing,
    ValueError for an unknown protocol."""
    text = str(out)
    if text.startswith("file://"):
        return Patient(Folder(text.removeprefix("file://")))
    return Patient(Remote(text) if "://" in text else Folder(out))
