"""`fastdiff demo`: the same pictures by the baseline and by fastdiff, side by side, with times and the error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import fastdiff
from fastdiff import pictures
from fastdiff.cli.console import console, print_json, progress
from fastdiff.cli.info import collect
from fastdiff.files import replacing, writable_folder
from fastdiff.models.bundled import BundledModel, to_pictures
from fastdiff.process.noise import CounterNoise

CURVE_STEPS = (5, 8, 12, 20, 50)  # and those of the two paths
CURVE_SOLVERS = {"ddim": "DDIM", "dpmpp-2m": "DPM-Solver++(2M)"}
CURVE_PICTURES = 3
CONVERGED_STEPS = 100
PICTURES = {"baseline": "baseline.png", "fastdiff": "fastdiff.png"}  # title of a run -> file
TOLERANCE = 1e-5  # RMS of the difference over that of the pictures, at equal steps


@dataclass(frozen=True)
class Run:
    """One path's pictures and its time in seconds. samples: (B, C, H, W)."""

    title: str
    solver: str
    steps: int
    backend: str
    samples: Tensor
    seconds: float


class Demo:
    """What all runs of the demo share: model, classes, guidance and seed."""

    def __init__(self, model: BundledModel, per_class: int, guidance: float, seed: int) -> None:
        info = model.info
        self.model, self.seed, self.guidance = model, seed, fastdiff.CFG(guidance)
        self.classes: list[str | None] = [*info.classes] or [None]
        self.labels = [name for name in self.classes for _ in range(per_class)]

    def sample(self, solver: str, steps: int, backend: str, count: int | None = None, callback: Any = None) -> Tensor:
        """All pictures, or `count` of them, spread over the classes."""
        info, total = self.model.info, len(self.labels)
        chosen = range(total) if count is None else range(0, total, -(-total // count))
        labels = [self.labels[i] for i in chosen]
        noise = CounterNoise.of(self.seed, total).initial((total, *info.shape), torch.float32)[list(chosen)]
        with fastdiff.use(backend):
            return fastdiff.sample(
                self.model,
                noise,
                solver=solver,
                steps=steps,
                grid="logsnr",  # for both solvers, so that only they and the number of steps differ
                guidance=self.guidance,
                cond=info.condition(labels, len(labels)),
                uncond=info.condition(None, len(labels)),
                callback=callback,
            )


def run(
    out: str,
    model_name: str,
    per_class: int,
    baseline_steps: int,
    steps: int,
    guidance: float,
    seed: int,
    as_json: bool,
) -> None:
    """See `fastdiff demo --help`."""
    folder = writable_folder(out)
    demo = Demo(fastdiff.load(model_name), per_class, guidance, seed)
    plan = (
        ("baseline", "ddim", baseline_steps, "reference"),
        ("fastdiff", "dpmpp-2m", steps, "cpu"),
        ("fastdiff, equal steps", "ddim", baseline_steps, "cpu"),
    )
    curve_steps = sorted({*CURVE_STEPS, baseline_steps, steps})
    with progress() as bar:
        demo.sample("dpmpp-2m", 2, "cpu")  # the first calls are slower: libraries load and choose their kernels
        runs = []
        for title, solver, count, backend in plan:
            task = bar.add(f"{title}: {solver}, {count} steps", total=count)
            started = time.perf_counter()
            samples = demo.sample(solver, count, backend, callback=lambda *_, task=task: bar.advance(task))
            runs.append(Run(title, solver, count, backend, samples, time.perf_counter() - started))
            if title in PICTURES:  # written at once: whatever comes later, they are there
                pictures.save_png(
                    folder / PICTURES[title], pictures.grid(to_pictures(demo.model, samples), per_class), zoom=3
                )
        task = bar.add(
            "error against the converged solution", total=len(CURVE_SOLVERS) * sum(curve_steps) + CONVERGED_STEPS
        )
        curves = convergence(demo, curve_steps, lambda *_: bar.advance(task))

    baseline, fast, equal = runs
    apart, size = equal.samples - baseline.samples, baseline.samples.square().mean().sqrt()
    difference = apart.square().mean().sqrt() / size
    summary = {
        "model": model_name,
        "pictures": len(demo.labels),
        "guidance": guidance,
        "seed": seed,
        "baseline": {"solver": baseline.solver, "steps": baseline.steps, "seconds": round(baseline.seconds, 3)},
        "fastdiff": {"solver": fast.solver, "steps": fast.steps, "seconds": round(fast.seconds, 3)},
        "equal_steps": {"solver": equal.solver, "steps": equal.steps, "seconds": round(equal.seconds, 3)},
        "speed_up": round(baseline.seconds / fast.seconds, 2),
        "speed_up_at_equal_steps": round(baseline.seconds / equal.seconds, 2),
        "difference_at_equal_steps": float(difference),
        "largest_difference_at_equal_steps": float(apart.abs().max() / size),
        "tolerance": TOLERANCE,
        "agree": bool(difference <= TOLERANCE),
        "errors": curves,
        "error_of_baseline": curves["ddim"][baseline_steps],
        "error_of_fastdiff": curves["dpmpp-2m"][steps],
        "error_pictures": CURVE_PICTURES,
        "converged_steps": CONVERGED_STEPS,
        "report": str((folder / "index.html").resolve()),
    }
    write(folder, runs, demo, summary)
    if as_json:
        print_json(summary)
    else:
        _print(runs, summary)
    if not summary["agree"]:
        raise fastdiff.SamplingError(
            f"at equal steps the two paths differ by {difference:.2e} of the RMS, more than {TOLERANCE:g}; "
            f"see {summary['report']}"
        )


def convergence(demo: Demo, step_counts: list[int], callback: Any) -> dict[str, dict[int, float]]:
    """For each solver, steps -> RMS distance from the converged solution of the same noise, pixels in [-1, 1]."""
    converged = demo.sample("dpmpp-2m", CONVERGED_STEPS, "cpu", CURVE_PICTURES, callback)
    return {
        solver: {
            steps: float(
                (demo.sample(solver, steps, "cpu", CURVE_PICTURES, callback) - converged).square().mean().sqrt()
            )
            for steps in step_counts
        }
        for solver in CURVE_SOLVERS
    }


def write(folder: Path, runs: list[Run], demo: Demo, summary: dict[str, Any]) -> None:
    """error.png and index.html; the pictures are there already."""
    import jinja2

    plot(summary["errors"], folder / "error.png")
    template = resources.files("fastdiff.cli").joinpath("demo.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    with replacing(folder / "index.html") as path:
        path.write_text(
            page.render(runs=runs, classes=demo.classes, summary=summary, machine=collect()), encoding="utf-8"
        )


def plot(errors: dict[str, dict[int, float]], path: Path) -> None:
    """Error against model calls, a line a solver."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for solver, curve in errors.items():
        axes.loglog(list(curve), list(curve.values()), marker="o", label=CURVE_SOLVERS[solver])
    axes.set(xlabel="steps (one guided model call each)", ylabel="RMS distance from the converged solution")
    ticks = sorted({steps for curve in errors.values() for steps in curve})
    axes.set_xticks(ticks, [str(steps) for steps in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _print(runs: list[Run], summary: dict[str, Any]) -> None:
    table = Table(title=f"{summary['pictures']} pictures from {summary['model']}, guidance {summary['guidance']:g}")
    for heading in ("path", "solver", "steps", "engine", "seconds", "speed-up"):
        table.add_column(heading, justify="left" if heading in ("path", "solver", "engine") else "right")
    for item in runs:
        speed_up = f"{runs[0].seconds / item.seconds:.2f}x"
        engine = "PyTorch" if item.backend == "reference" else "C++"
        table.add_row(item.title, item.solver, str(item.steps), engine, f"{item.seconds:.2f}", speed_up)
    console.print(table)
    console.print(
        f"at equal steps the two paths differ by {summary['difference_at_equal_steps']:.1e} of the RMS "
        f"(tolerance {summary['tolerance']:g}), in the largest pixel by "
        f"{summary['largest_difference_at_equal_steps']:.1e}"
    )
    console.print(
        f"distance from the converged solution (RMS, pixels in [-1, 1]): baseline {summary['error_of_baseline']:.3f}, "
        f"fastdiff {summary['error_of_fastdiff']:.3f}"
    )
    console.print(f"report: [bold]{summary['report']}[/bold]")
