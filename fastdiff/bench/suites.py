"""The suites of a checkout's benchmarks/ folder, run and brought to rows (see records.py)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastdiff.bench.heap import run_benchmark
from fastdiff.bench.records import Row, op_row, solver_row
from fastdiff.errors import expect, unknown
from fastdiff.ops import OPS
from fastdiff.solvers import SOLVERS

SUITES = ("ops", "models", "solvers")
MODELS = ("small", "ddpm", "sd", "sd15", "sdxl", "vae", "dit", "controlnet", "video", "imagen-base")
ROW_NAMES = {"sd15": "sd"}  # two names of one row
NEEDS = {"ops": "pytest_benchmark", "models": "diffusers", "solvers": "diffusers"}  # modules of the extra `bench`
BAD_ARGUMENT = 2  # the status of a benchmark that has said what is wrong with its arguments
ON_GPU = ("eager", "compile")  # of the peers, those that run on a GPU
PEERS = ("eager", "compile", "openvino", "onnxruntime", "diffusers")


def folder() -> Path:
    """benchmarks/ of the current folder or of the checkout that is installed. Raises FileNotFoundError without one."""
    candidates = [Path.cwd() / "benchmarks", Path(__file__).parents[2] / "benchmarks"]
    for candidate in candidates:
        if (candidate / "bench_solvers.py").is_file():
            return candidate
    raise FileNotFoundError(
        f"no {' or '.join(map(str, candidates))}: the benchmarks are in fastdiff's repository, run this in a checkout"
    )


def run(
    suite: str,
    *,
    against: Sequence[str] = (),
    only: Sequence[str] = (),
    arguments: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[Row]:
    """The rows of a suite; its own tables go to the standard error.

    against: peers of `PEERS`, for the models. only: operators, models or solvers. arguments: further ones of pytest for
    the operators; options: of the script of the models or solvers. Raises ValueError for unknown names, ImportError for
    what is not installed, RuntimeError if a benchmark fails: a wrong result is not timed.
    """
    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    for peer in against:
        if peer not in PEERS:
            raise unknown("peer", peer, PEERS)
    for name in only:
        known, kind = {"ops": (OPS, "op"), "models": (MODELS, "model"), "solvers": (SOLVERS, "solver")}[suite]
        if name not in known:
            raise unknown(kind, name, known)
    if importlib.util.find_spec(NEEDS[suite]) is None:
        raise ImportError(f"fastdiff bench {suite} needs {NEEDS[suite]}: pip install 'torch-fastdiff[bench]'")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.json"
        if suite == "ops":
            return _ops(file, only, arguments)
        script = folder() / f"bench_{suite}.py"
        expect(script.is_file(), f"there is no {script}")
        options = ["--json", str(file), *options]
        if only:
            options += ["--rows" if suite == "models" else f"--{suite}", ",".join(only)]
        if against and suite == "models":
            peers = [peer for peer in against if peer != "eager"]  # which always runs
            options += ["--peers", ",".join(peers) or "none"]
        _checked([sys.executable, str(script), *options])
        found = json.loads(file.read_text(encoding="utf-8"))
        return found["rows"] if "rows" in found else [solver_row(result) for result in found["results"]]


def _ops(file: Path, only: Sequence[str], arguments: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    kept = ["--benchmark-storage", f"file://{file.parent}"]  # not a folder beside the user's files
    for op in only or OPS:
        path = folder() / f"bench_{op}.py"
        status = run_benchmark(
            str(path), ["--heap", "default", "--benchmark-json", str(file), *kept, *arguments], stdout=sys.stderr
        )
        if status:
            raise RuntimeError(f"{path.name} failed with status {status}; a wrong result is not timed")
        rows += [op_row(op, entry) for entry in json.loads(file.read_text(encoding="utf-8"))["benchmarks"]]
    return rows


def _checked(command: Sequence[str]) -> None:
    status = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if status == BAD_ARGUMENT:  # it has said what
        raise SystemExit(BAD_ARGUMENT)
    if status:
        raise RuntimeError(f"{Path(command[1]).name} failed with status {status}")
