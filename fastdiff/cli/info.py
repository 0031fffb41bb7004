"""`fastdiff info`: what is installed, what the machine has, which kernels run."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fastdiff
from fastdiff.cli.console import print_json
from fastdiff.explain import Choice
from fastdiff.models import bundled
from fastdiff.runtime import choice, cuda, triton
from fastdiff.runtime.native import core


def run(as_json: bool) -> None:
    """See `fastdiff info --help`."""
    facts = collect()
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    short = {key: value for key, value in facts.items() if key != "kernels"}
    for key, value in {**short, **kernels_in_short()}.items():
        table.add_row(key.replace("_", " "), (", ".join(value) or "none") if isinstance(value, list) else str(value))
    console = Console(highlight=False)
    console.print(table)
    console.print("\nIn full, with the reason for each operator and dtype: fastdiff info --json")


def kernels_in_short() -> dict[str, str]:
    """What runs on the CPU and on a GPU, a line for operators that are alike, and every reason once."""
    found: dict[str, list[Choice]] = {"CPU kernels": [], "GPU kernels": []}
    for each in fastdiff.explain().choices:
        found["CPU kernels" if each.device == "cpu" else "GPU kernels"].append(each)
    if not torch.cuda.is_available():
        found.pop("GPU kernels")
    lines = {name: "\n".join(_in_short(choices)) for name, choices in found.items()}
    return lines if torch.cuda.is_available() else {**lines, "GPU kernels": "none: torch sees no GPU"}


def _in_short(choices: Sequence[Choice]) -> list[str]:
    runs: dict[str, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for each in choices:
        kernel = each.runs not in ("PyTorch", "nothing", "an error")
        if kernel:
            runs.setdefault(each.op, []).append(each.runs + (f" in {', '.join(each.dtypes)}" if each.dtypes else ""))
        for reason in [] if kernel else each.why_not.values():
            if not re.search(r", not torch\.\w+$", reason):  # of a dtype: the line with the others says it
                reasons.setdefault(f"{each.runs}: {reason}", []).append(each.op)
    alike: dict[str, list[str]] = {}
    for op, what in runs.items():
        alike.setdefault("; ".join(what), []).append(op)
    lines = [f"{', '.join(ops)}: {what}" for what, ops in alike.items()]
    lines += [f"{', '.join(dict.fromkeys(ops))}: {reason}" for reason, ops in reasons.items()]
    return [*lines, "all else: PyTorch"] if runs else lines


def collect() -> dict[str, Any]:
    """The facts, as JSON holds them."""
    return {
        "fastdiff": fastdiff.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "threading": core.threading(),
        "compiler": core.compiler(),
        "instruction_set": core.isa() + (" (FASTDIFF_ISA)" if os.environ.get("FASTDIFF_ISA") else ""),
        "instruction_sets_available": core.supported_isas(),
        "backend": choice.current(),
        "kernels": _kernels(),
        "models": bundled.names(),
    }


def _kernels() -> dict[str, str]:
    """For each operation what runs it on each kind of device, and why not something else; which GPU kernels there
    are."""
    kernels: dict[str, str] = {}
    for op in fastdiff.explain().choices:
        dtypes = f" ({', '.join(op.dtypes)})" if op.dtypes else ""
        said = "; ".join(f"{name}: {reason}" for name, reason in op.why_not.items())
        line = f"{op.device}{dtypes}: {op.runs}" + (f" ({said})" if said else "")
        kernels[op.op] = f"{kernels[op.op]}; {line}" if op.op in kernels else line
    built = f"built with CUDA {cuda.build()}" if cuda.library() else "not built"
    kernels["cuda"] = _said(cuda.unavailable(), f"{built}; ")
    kernels["triton"] = _said(triton.unavailable(), "")
    return kernels


def _said(reason: str | None, before: str) -> str:
    return before + ("available" if reason is None else f"not available: {reason}")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or 'unknown'}, {os.cpu_count()} cores"
