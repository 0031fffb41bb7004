"""What `module:function` and `file.py:function` name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fastdiff.errors import expect


def entry_point(name: str, what: str) -> Any:
    """The object that `module:name` or `file.py:name` names; modules are looked for in the current folder first.

    Raises ValueError that says what is missing.
    """
    module_name, _, attribute = name.rpartition(":")
    expect(
        bool(attribute) and bool(module_name) and not module_name.startswith("."),
        f"{what} {name!r} must be like module:function or file.py:function",
    )
    if module_name.endswith(".py"):
        path = Path(module_name)
        expect(path.is_file(), f"{what} {name!r}: there is no file {module_name}")
        module = _executed(path.resolve())
    else:
        try:
            with _first_on_the_path(Path.cwd()):
                module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ValueError(f"{what} {name!r}: {error}") from error
    expect(hasattr(module, attribute), f"{what} {name!r}: {module_name} has no {attribute!r}")
    return getattr(module, attribute)


def _executed(path: Path) -> ModuleType:
    """The module of a file, which finds its neighbours as a script does."""
    name = path.stem if path.stem not in sys.modules else f"fastdiff_entry_point_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look it up there
    try:
        with _first_on_the_path(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _first_on_the_path(folder: Path) -> Iterator[None]:
    """Inside the block modules are looked for in the folder first. It stays out of the path afterwards: in a checkout
    of fastdiff it holds the sources, which are not compiled."""
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)
