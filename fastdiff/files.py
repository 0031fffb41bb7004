"""Files written whole or not at all, and folders that one process has to itself."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastdiff.errors import expect

LOCK = ".lock"
WRITING = ".writing-"  # begins the names of files that are not whole yet


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    The suffix is kept, since many writers choose the format by it. Whoever reads `path` sees the old file or the whole
    new one, never a part. Raises OSError that names `path`, not the temporary one, if it cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{WRITING}{path.stem}-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or not _is_of(error, temporary, path):
            raise
        raise OSError(error.errno, f"cannot write {path}: {os.strerror(error.errno)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _is_of(error: OSError, temporary: Path | None, path: Path) -> bool:
    """Whether an error is of writing: it names no file, or one of these, and not one that the block reads or writes."""
    if isinstance(error.__cause__, OSError):  # of a block within this one, which has said it
        return False
    return error.filename is None or str(error.filename) in (str(temporary), str(path)) or temporary is None


def writable_folder(path: str | Path) -> Path:
    """Make the folder `path` if need be and prove that files can be written there. Raises OSError that names it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        file = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), None)
        reason = error.strerror if file is None else f"{file} is a file"
        raise OSError(error.errno, f"cannot write to the folder {path}: {reason}") from error
    return path


@contextmanager
def working_folder(path: str | Path) -> Iterator[Path]:
    """`writable_folder`, whose new folders are removed again if the block ends with an error and nothing in them."""
    made = [each for each in (Path(path), *Path(path).parents) if not each.exists()]
    folder = writable_folder(path)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # of one that is not empty
            for each in made:
                each.rmdir()
        raise


def writable_file(path: str | Path) -> Path:
    """Make the folder of the file `path` if need be and prove that files can be written there.

    Raises OSError that names the folder, ValueError if `path` is a folder itself.
    """
    path = Path(path)
    expect(not path.is_dir(), f"{path} is a folder, expected a file")
    writable_folder(path.parent)
    return path


def remove_parts(folder: Path) -> None:
    """Remove what a killed process was writing into the folder. For who has the folder to itself."""
    for path in folder.glob(f"{WRITING}*"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the block no other process gets past `locked` of this folder. The lock dies with its process, and what a
    process that was killed was writing is removed.

    Raises ValueError that names the other process if it is taken.
    """
    path = folder / LOCK
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        if not _lock(file):
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise ValueError(
                f"{folder} is in use by another fastdiff{f' (process {owner})' if owner else ''}; "
                "wait until it ends, or give another --out"
            )
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            break
        file.close()  # its owner removed it before it was locked here
    try:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        remove_parts(folder)
        yield
    finally:
        if os.name != "nt":  # where an open file cannot be removed
            path.unlink(missing_ok=True)
        file.close()


def _lock(file: IO[str]) -> bool:
    """Take the lock of an open file without waiting; False if another holds it."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0x7FFF_0000)  # what is locked cannot be read: not the number of the process
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True
