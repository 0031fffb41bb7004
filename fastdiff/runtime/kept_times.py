"""The file of what was timed on this machine: FASTDIFF_TUNE_FILE, or fastdiff/times.json in the user's caches.

It holds the seconds of each candidate by what was run: device, versions, signature. A candidate that is not in it is
timed when it is met, so that a process that ran out of its budget leaves the rest to the next.
"""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from pathlib import Path
from typing import Any

from fastdiff.files import replacing
from fastdiff.runtime import environment

Entry = dict[str, dict[str, Any]]  # "seconds" and "dropped", by candidate


def path() -> Path:
    """Of the file."""
    given = environment.read("FASTDIFF_TUNE_FILE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(caches) / "fastdiff" / "times.json"


class KeptTimes:
    """The entries of the file and of this process. A file that is damaged or cannot be written is warned of once."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] | None = None
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def find(self, key: str) -> Entry:
        """What is known of a key; empty dictionaries where nothing is."""
        with self._lock:
            if self._entries is None:
                self._entries = self._read()
            found = self._entries.get(key, {})
            return {"seconds": dict(found.get("seconds", {})), "dropped": dict(found.get("dropped", {}))}

    def keep(self, key: str, entry: Entry) -> None:
        """Keep an entry in place of the one before, in the file with what other processes have put there."""
        with self._lock:
            entries = self._entries if self._entries is not None else {}
            entries[key] = entry
            self._entries = {**self._read(), **entries}
            self._write(self._entries)

    def _read(self) -> dict[str, Entry]:
        file = path()
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise TypeError(f"expected an object, got {type(found).__name__}")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            self._warn(f"{file} does not hold times ({error}); they are taken again")
            return {}
        return {key: entry for key, entry in found.items() if _is_entry(entry)}

    def _write(self, entries: dict[str, Entry]) -> None:
        file = path()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            self._warn(f"times are kept for this process only: {error}")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"fastdiff: {text}", stacklevel=2)


def _is_entry(entry: object) -> bool:
    """Whether this has the form of an Entry, with times that can be times."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(part), dict) for part in ("seconds", "dropped")):
        return False
    seconds = entry["seconds"].values()
    return all(isinstance(s, float) and math.isfinite(s) and s > 0 for s in seconds) and all(
        isinstance(reason, str) for reason in entry["dropped"].values()
    )
