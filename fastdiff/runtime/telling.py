"""What takes seconds is said through Python's `logging`, to the logger "fastdiff", at the level INFO: nobody sees it
unless a program shows it, `optimize(..., progress=True)` is called, or a command runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

log = logging.getLogger("fastdiff")


class Shown(logging.Handler):
    """Shows each message as a line."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        super().__init__(logging.INFO)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """One message."""
        if self._write is not None:
            self._write(record.getMessage())
        else:  # the stream that is there now, which a program may have replaced
            print(f"fastdiff: {record.getMessage()}", file=sys.stderr, flush=True)


def show(write: Callable[[str], object] | None = None) -> None:
    """Show the messages from here on, on the standard error or by `write`; once, however often it is called. A level
    that was set for the logger stays."""
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    if not any(isinstance(handler, Shown) for handler in log.handlers):
        log.addHandler(Shown(write))
