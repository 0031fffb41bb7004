"""Whole models: fastdiff.optimize against eager PyTorch, torch.compile, OpenVINO and ONNX Runtime.

    python benchmarks/bench_models.py [--rows ddpm,sd,vae,dit] [--peers compile,openvino,onnxruntime] [--json FILE]
    python benchmarks/bench_models.py --device cuda --dtype float16 [--rows sd,sdxl,dit,vae] [--peers compile]

Random weights. On a GPU, or with --minutes, see models_in_time.py. Else every engine runs in a process of its own,
without a binding of threads to cores, and takes turns with the others: a call that is not timed, then those that are.
Before that its result is checked, against eager in float64 where that fits into memory, else in float32, which one more
process computes. Where memory does not hold all engines at once, each starts anew in every round. Peers need the extra
`bench`; torch.compile needs a C++ compiler. A row with all peers takes minutes, most of them in their exports. The row
`small` is a quick check of this file."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines import ENGINES, engine
from model_rows import build
from models_in_time import Budget
from models_in_time import as_row as timed_row
from models_in_time import measure as measure_in_time
from models_in_time import table as timed_table
from more_of_a_model import more_of
from torch import Tensor

import fastdiff
from fastdiff import arguments
from fastdiff.bench.suites import BAD_ARGUMENT, MODELS, ON_GPU
from fastdiff.bench.timing import timed
from fastdiff.bench.turns import Worker, available_memory, serve, take_turns
from fastdiff.compiler.differences import HALVES, difference
from fastdiff.compiler.wider import without_tf32

WANTED = {"ddpm": 2.0, "sd": 1.6, "vae": 2.7, "dit": 1.12}  # times as fast as the best peer
PEERS = ENGINES[2:]
WARM = 3
TOLERANCE = 1e-4  # of the output's RMS


@torch.no_grad()
def expected(
    row: str, file: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Write what the model gives in this dtype, and in float64 where that fits, else in float32; says in which, and the
    bytes of the weights."""
    where = torch.device(device)
    model, inputs = build(row, where, dtype)
    size = sum(parameter.numel() for parameter in model.parameters())
    wide = torch.float64 if size <= 200_000_000 else torch.float32
    with without_tf32(where):
        eager = model(*inputs)
        exact = eager
        if wide != dtype:
            exact = model.to(wide)(*(x.to(wide) if x.is_floating_point() else x for x in inputs))
    torch.save({"exact": exact.double().cpu(), "eager": eager.cpu()}, file)
    return {"against": str(wide).removeprefix("torch."), "bytes": dtype.itemsize * size}


def error_of(out: Tensor, file: Path) -> tuple[float, float]:
    """(error, what it may be), of the output's RMS: in float32 the largest one and `TOLERANCE`, in half precision the
    RMS, and 1.25 times eager's in the same type plus a rounding."""
    known = torch.load(file)
    found = difference("output", out.cpu(), known["eager"], known["exact"])
    if out.dtype in HALVES:
        return found.rms, found.rms_bound
    return found.maximum, TOLERANCE


def prepare(
    row: str,
    name: str,
    folder: Path,
    threads: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Callable[[], Tensor], dict[str, Any]]:
    """The engine's call, after its first result was checked. Raises ValueError if that is wrong."""
    torch.set_num_threads(threads)
    model, inputs = build(row, device, dtype)
    own = folder / name
    own.mkdir(exist_ok=True)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of building in float32
    call: Callable[[], Tensor] = lambda: None  # type: ignore[assignment, return-value]  # noqa: E731
    with timed(device) as elapsed:
        call = engine(name, model, inputs, own, threads)
        del model  # a peer has weights of its own
        out = call()
    error, allowed = error_of(out, folder / "expected.pt")
    if not error <= allowed:
        raise ValueError(f"differs by {error:.1e} of the output's RMS, allowed {allowed:.1e}; not timed")
    if torch.device(device).type == "cuda":
        for _ in range(WARM):  # graphs are recorded at the second or third call
            call()
    return call, {"first": elapsed.seconds, "error": error, "allowed": allowed}


def measure(row: str, names: list[str], rounds: int, threads: int, dtype: str = "float32") -> dict[str, Any]:
    """Check every engine, then time them in turns. Raises RuntimeError if eager or fastdiff fails: no row without."""
    with tempfile.TemporaryDirectory() as folder:

        def command(name: str) -> list[str]:
            return [sys.executable, __file__, f"--threads={threads}", f"--dtype={dtype}", "--engine", row, name, folder]

        truth = Worker(command("expected"))
        truth.close()
        if "failed" in truth.answer:
            raise RuntimeError(f"{row}: {truth.answer['failed']}")
        facts, memory = truth.answer, available_memory()
        together = memory is None or 3 * facts["bytes"] * len(names) < memory
        results = take_turns({name: command(name) for name in names}, rounds=rounds, together=together)
    for name, found in results.items():
        if "failed" in found and name in ENGINES[:2]:
            raise RuntimeError(f"{row}: {name}: {found['failed']}")
        if "failed" not in found:
            found.update(zip(("median", "p20", "p80"), np.percentile(found["all"], (50, 20, 80)).tolist()))
    return {"row": row, "against": facts["against"], "threads": threads, "together": together, "engines": results}


def table(result: dict[str, Any]) -> str:
    """One row, for people."""
    engines = result["engines"]
    apart = "" if result["together"] else ", a new process for every round"
    lines = [f"{result['row']}: {result['threads']} threads, checked against {result['against']}{apart}"]
    for name, found in engines.items():
        if "failed" in found:
            lines.append(f"  {name:<12} {found['failed']}")
            continue
        text = f"{found['median']:8.3f} s ({found['p20']:.3f} to {found['p80']:.3f})"
        memory = f"peak {found['peak'] / 1e6:,.0f} MB" + (", its export included" if name in PEERS[1:] else "")
        lines.append(f"  {name:<12} {text}, first call {found['first']:.1f} s, error {found['error']:.1e}, {memory}")
    ours = engines["fastdiff"]
    ratio = min(found["median"] for name, found in engines.items() if name != "fastdiff" and "median" in found)
    ratio /= ours["median"]
    wanted = WANTED.get(result["row"])
    goal = "" if wanted is None else f", {'' if ratio >= wanted else 'NOT '}the wanted {wanted}x"
    lines.append(f"  {ratio:.2f}x of the best peer{goal}")
    lines.append(f"  {ours['peak'] / engines['eager']['peak']:.2f}x of eager's peak memory, wanted at most 1.8x")
    return "\n".join(lines)


def as_row(result: dict[str, Any]) -> dict[str, Any]:
    """As `fastdiff bench` keeps it: the baseline is the fastest of the others."""
    seconds = {
        {"fastdiff": "ours"}.get(name, name): {key: engine[key] for key in ("median", "p20", "p80")}
        for name, engine in result["engines"].items()
        if "median" in engine
    }
    others = [name for name in seconds if name != "ours"]
    best = min(others, key=lambda name: seconds[name]["median"])
    return {"name": result["row"], "seconds": seconds, "baseline": best, "engines": result["engines"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--peers", help="of compile, openvino, onnxruntime; or none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of every engine; as many as PyTorch would take if not given")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--minutes", type=float, help="that all may take; 6 on a GPU, no limit on the CPU")
    parser.add_argument("--json", help="a file for the numbers")
    parser.add_argument("--engine", nargs=3, metavar=("ROW", "ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        device, dtype = arguments.device("--device", options.device), arguments.dtype("--dtype", options.dtype)
        rows, peers = _chosen(options, device, dtype)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(BAD_ARGUMENT) from error
    if options.engine:
        _work(*options.engine, options.threads, device, dtype)
        return
    threads = options.threads or torch.get_num_threads()
    if device.type == "cuda" or options.minutes is not None:
        made = _in_time(rows, peers, options, threads, device, dtype)
    else:
        made = []
        for row in rows:
            result = measure(row, [*ENGINES[:2], *peers], options.rounds, threads, options.dtype)
            print(table(result), flush=True)
            made.append(as_row(result))
    if options.json:
        Path(options.json).write_text(json.dumps({"rows": made}, indent=1))


def _chosen(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[list[str], list[str]]:
    """Rows and peers. Raises ValueError for what is unknown, or not for this device and dtype."""
    on_gpu = device.type == "cuda"
    rows = (options.rows or ("sd,sdxl,dit,vae" if on_gpu else "ddpm,vae,dit,sd")).split(",")
    for row in rows:
        if row not in MODELS:
            raise ValueError(f"unknown row {row!r}; known: {', '.join(MODELS)}")
    able = [peer for peer in PEERS if peer in ON_GPU or (not on_gpu and dtype == torch.float32)]
    given = able if options.peers is None else [name for name in options.peers.split(",") if name in PEERS]
    for peer in given:
        if peer not in able:
            raise ValueError(f"{peer} is measured on the CPU in float32 only")
    return rows, given


def _work(row: str, name: str, folder: str, threads: int, device: torch.device, dtype: torch.dtype) -> None:
    """Be one engine's process. A peer's models call PyTorch where they would call our operators."""
    with nullcontext() if name == "fastdiff" else fastdiff.use("reference"):
        _serve(row, name, folder, threads, device, dtype)


def _serve(row: str, name: str, folder: str, threads: int, device: torch.device, dtype: torch.dtype) -> None:
    if name == "expected":
        serve(lambda: (lambda: None, expected(row, Path(folder) / "expected.pt", device, dtype)))
        return
    kept: dict[str, Any] = {}

    def made() -> tuple[Callable[[], Tensor], dict[str, Any]]:
        kept["call"], first = prepare(row, name, Path(folder), threads, device, dtype)
        return kept["call"], first

    with torch.no_grad(), without_tf32(device):
        serve(made, device=device, more=more_of(row, name, kept, device, dtype))


def _in_time(
    rows: list[str], peers: list[str], options: argparse.Namespace, threads: int, device: torch.device,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:  # fmt: skip
    budget = Budget(60 * (6.0 if options.minutes is None else options.minutes))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads"
    with tempfile.TemporaryDirectory() as scratch:

        def command(row: str, engine_name: str) -> list[str]:
            folder = Path(scratch) / row
            folder.mkdir(exist_ok=True)
            return [sys.executable, __file__, f"--threads={threads}", f"--device={device}", f"--dtype={options.dtype}",
                    "--engine", row, engine_name, str(folder)]  # fmt: skip

        results = measure_in_time(rows, ["eager", "fastdiff", *peers], command, budget, options.rounds)
    for result in results:
        print(timed_table(result, f"{name}, {options.dtype}, without TF32"), flush=True)
    return [made for result in results if (made := timed_row(result, str(device), options.dtype)) is not None]


if __name__ == "__main__":
    main()
