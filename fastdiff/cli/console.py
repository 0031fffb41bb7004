"""What the commands share: the console, progress bars, machine-readable output."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# People read on the standard error, so that the standard output of --json stays clean.
console = Console(stderr=True, highlight=False)


def progress() -> Progress:
    """A progress bar with counts, time spent and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on the standard output."""
    print(json.dumps(data, ensure_ascii=False))
