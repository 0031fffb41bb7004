"""fastdiff's commands as a user runs them, each in a process of its own.

To import torch and fastdiff takes longer than most commands do. So the processes are forked from one that has them
imported and has computed nothing, where the system can fork.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

COMMAND = [sys.executable, "-c", "from fastdiff.cli.main import main; main()"]
TIMEOUT = 600.0  # seconds
READ_LATE = {"COLUMNS", "PATH"}  # what a command reads when it runs; other variables count when Python or torch start
AT_FIRST = dict(os.environ)  # before any test changes it
FORKS = sys.platform == "linux"


def run_command(*given, env: dict[str, str] | None = None, cwd=None) -> subprocess.CompletedProcess[str]:
    """What `fastdiff` with these arguments prints, and its exit status."""
    line = [str(each) for each in given]
    env = dict(os.environ) if env is None else env
    changed = {name for name in AT_FIRST.keys() | env.keys() if AT_FIRST.get(name) != env.get(name)}
    if not FORKS or any(not name.startswith("PYTEST_") for name in changed - READ_LATE):
        return subprocess.run(
            [*COMMAND, *line], capture_output=True, text=True, check=False, env=env, cwd=cwd, timeout=TIMEOUT
        )
    forkserver.set_forkserver_preload(["fastdiff.cli.main"])
    with mock.patch.dict(os.environ, AT_FIRST, clear=True):
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder) / name for name in ("stdout", "stderr")]
        process = multiprocessing.get_context("forkserver").Process(
            target=_command, args=(line, env, str(cwd or Path.cwd()), *map(str, printed))
        )
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(line, TIMEOUT)
        texts = [path.read_text(encoding="utf-8") for path in printed]
    return subprocess.CompletedProcess(line, process.exitcode, *texts)


def _command(line: list[str], env: dict[str, str], cwd: str, out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, path, how in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, how | (os.O_CREAT if number else 0)), number)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", closefd=False) for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    sys.path.insert(0, cwd)  # and not "", in whose place the processes that a command starts have pytest's folder
    sys.argv = ["fastdiff", *line]
    from fastdiff.cli.main import main

    main()
