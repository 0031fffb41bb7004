"""The two ways in which malloc gives large blocks, which decide about the time of an operator with a large result.

"default": glibc maps blocks of 32 MiB and more afresh for every call. "raised": it keeps them, so that what is timed is
the operator. The choice is made by environment variables that are read when a process starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RAISED = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483648"}


def heap() -> str:
    """ "raised" or "default": that of this process."""
    return "raised" if os.environ.get("MALLOC_MMAP_THRESHOLD_") else "default"


def run_benchmark(path: str, arguments: Sequence[str] | None = None, *, stdout: Any = None) -> int:
    """Run the file with pytest once in each heap, threads pinned; returns the exit status.

    arguments: of pytest, and `--heap default` or `--heap raised` for one only; those of the command line if None. Where
    both heaps write a file (`--benchmark-json FILE`), that of the second is FILE with "-raised" before its suffix.
    stdout: a file for its output instead of this process's own.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments)
    wanted = ["default", "raised"]
    if "--heap" in rest:
        at = rest.index("--heap")
        wanted = [word for word in rest[at + 1 : at + 2] if word in wanted]
        if not wanted:
            raise SystemExit("--heap takes default or raised")
        del rest[at : at + 2]
    output = {} if stdout is None else {"stdout": stdout}
    status = 0
    for name in wanted:
        environment = {k: v for k, v in os.environ.items() if k not in _RAISED}
        environment |= _RAISED if name == "raised" else {}
        environment.setdefault("OMP_PROC_BIND", "true")
        given = _beside(rest) if name == "raised" and len(wanted) == 2 else rest
        command = [sys.executable, "-m", "pytest", "-q", "--benchmark-quiet", path, *given]
        status = subprocess.run(command, env=environment, check=False, **output).returncode or status
    return status


def _beside(arguments: Sequence[str]) -> list[str]:
    """With another file for the results than the default heap's."""
    found = list(arguments)
    for at, word in enumerate(found):
        option, separator, file = word.partition("=")
        if option == "--benchmark-json" and (separator or at + 1 < len(found)):
            path = Path(file if separator else found[at + 1])
            other = str(path.with_name(f"{path.stem}-raised{path.suffix}"))
            found[at if separator else at + 1] = f"{option}={other}" if separator else other
    return found
