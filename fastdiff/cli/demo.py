"""`fastdiff demo`: the same pictures by plain PyTorch and by fastdiff; what the solver gives, what the kernels give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import fastdiff
from fastdiff import arguments, pictures
from fastdiff.bench.timing import timed
from fastdiff.cli.console import console, print_json, progress, say_if_busy
from fastdiff.cli.info import collect
from fastdiff.errors import expect
from fastdiff.files import replacing, writable_folder
from fastdiff.models.bundled import BundledModel, to_pictures
from fastdiff.process.noise import CounterNoise

CURVE_STEPS = (5, 10, 20)  # and those of the two paths
CURVE_SOLVERS = {"ddim": "DDIM", "dpmpp-2m": "DPM-Solver++(2M)"}
CURVE_PICTURES = 9  # of which distances are measured: one of each class
QUICK_PICTURES = 2  # with --quick
CONVERGED_STEPS = 100
PICTURES = {"baseline": "baseline.png", "both": "fastdiff.png"}  # title of a run -> file
TOLERANCE = 1e-5  # RMS of the difference over that of the pictures, at equal steps, in float32
HALF_FACTOR = 2.0  # in half precision: of plain PyTorch's own distance to its samples in float32


@dataclass(frozen=True)
class Run:
    """One path's pictures and its time in seconds. fast: through `fastdiff.optimize` and the C++ engine, else plain
    PyTorch. samples: (B, C, H, W)."""

    title: str
    solver: str
    steps: int
    fast: bool
    samples: Tensor
    seconds: float

    def facts(self, baseline: Run) -> dict[str, Any]:
        """As JSON holds it."""
        speed_up = round(baseline.seconds / self.seconds, 2)
        return {"solver": self.solver, "steps": self.steps, "seconds": round(self.seconds, 3), "speed_up": speed_up}


class Demo:
    """What all runs of the demo share: model, classes, guidance and seed."""

    def __init__(
        self, name: str, per_class: int, guidance: float, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.model: BundledModel = fastdiff.load(name, device=device, dtype=dtype)
        info = self.model.info
        expect(info.image is None or not info.image.needed, f"{name} needs a picture ({info.image}): try `sample`")
        if (own := info.sampling) is not None:  # its steps lead to no solution that more of them come closer to
            why = f"{name} was distilled to {own.steps} steps of {own.solver}, and the demo compares solvers and steps"
            raise ValueError(f"{why}: try `fastdiff sample --model {name}`, or the demo with {own.teacher}")
        self.fast: Any = fastdiff.optimize(fastdiff.load(name, device=device, dtype=dtype))
        self.seed, self.guidance = seed, fastdiff.CFG(guidance)
        self.classes: list[str | None] = [*info.classes] or [None]
        self.labels = [name for name in self.classes for _ in range(per_class)]

    def sample(
        self,
        solver: str,
        steps: int,
        fast: bool,
        count: int | None = None,
        callback: Any = None,
        model: BundledModel | None = None,
    ) -> Tensor:
        """All pictures, or `count` of them, spread over the classes. model: in place of the demo's two."""
        model = model or (self.fast if fast else self.model)
        info, total = model.info, len(self.labels)
        chosen = range(total) if count is None else range(0, total, -(-total // count))
        labels = [self.labels[i] for i in chosen]
        noise = CounterNoise.of(self.seed, total).initial((total, *info.shape), torch.float32)[list(chosen)]
        noise = noise.to(self.device, next(model.parameters()).dtype)
        # with a callback a GPU could not replay the loop as one graph
        callback = None if self.device.type == "cuda" else callback
        with fastdiff.use("auto" if fast else "reference"):
            return fastdiff.sample(
                model,
                noise,
                solver=solver,
                steps=steps,
                grid="logsnr",  # for both solvers, so that only they and the number of steps differ
                guidance=self.guidance,
                cond=info.condition(labels, len(labels)),
                uncond=info.condition(None, len(labels)),
                callback=callback,
                schedule=info.schedule,
                prediction=info.prediction,
            )

    def pictures(self, samples: Tensor) -> Tensor:
        """Decoded, if they are latents; float32."""
        return to_pictures(self.model, samples).float()

    def differences(self, plain: Tensor, fast: Tensor, steps: int) -> dict[str, Any]:
        """How far the two forms of the network are apart after so many steps of DDIM, in units of the samples' RMS, and
        whether that is within the tolerance. In half precision it is how far each is from plain PyTorch's samples in
        float32, which makes them once more."""
        target, allowed = plain, TOLERANCE
        if self.dtype != torch.float32:
            exact = fastdiff.load(self.name, device=self.device)
            target = self.sample("ddim", steps, False, model=exact)
        unit = target.float().square().mean().sqrt()
        apart = (fast.float() - target.float()) / unit
        if self.dtype != torch.float32:
            plainly = float(((plain.float() - target.float()) / unit).square().mean().sqrt())
            allowed = HALF_FACTOR * plainly + torch.finfo(self.dtype).eps
        difference = float(apart.square().mean().sqrt())
        return {
            "difference_at_equal_steps": difference,
            "largest_difference_at_equal_steps": float(apart.abs().max()),
            "tolerance": allowed,
            "agree": difference <= allowed,
            "compared_with": "float32" if self.dtype != torch.float32 else "PyTorch",
        }


class Distances:
    """RMS distances from the converged solution of the same noise, pixels in [-1, 1]; each is measured once."""

    def __init__(self, demo: Demo, count: int, callback: Any) -> None:
        self.demo, self.count, self.callback = demo, count, callback
        self.known: dict[str, dict[int, float]] = {solver: {} for solver in CURVE_SOLVERS}
        self.converged = self._pictures("dpmpp-2m", CONVERGED_STEPS)

    def _pictures(self, solver: str, steps: int) -> Tensor:
        return self.demo.pictures(self.demo.sample(solver, steps, True, self.count, self.callback))

    def of(self, solver: str, steps: int) -> float:
        """Of so many steps."""
        found = self.known[solver]
        if steps not in found:
            found[steps] = float((self._pictures(solver, steps) - self.converged).square().mean().sqrt())
        return found[steps]

    def curves(self, steps: set[int]) -> dict[str, dict[int, float]]:
        """Of both solvers at these numbers of steps."""
        return {solver: {n: self.of(solver, n) for n in sorted(steps)} for solver in CURVE_SOLVERS}


def equal_steps(distance: Callable[[int], float], target: float, most: int) -> int:
    """About the least number of steps, `most` at most, that comes as close as `target`: guessed from the distances of
    10 and 20 steps, which fall as a power of the steps, then raised until it does."""
    slope = math.log(distance(20) / distance(10)) / math.log(2)
    if slope >= 0:
        return most
    guess = math.ceil(20 * (target / distance(20)) ** (1 / slope) - 1e-9)
    steps = min(most, max(1, guess))
    while steps < most and distance(steps) > target:
        steps = min(most, steps + max(1, steps // 10))
    return steps


def run(
    out: str,
    model_name: str,
    per_class: int,
    baseline_steps: int,
    steps: int | None,
    guidance: float,
    seed: int,
    as_json: bool,
    device: str = "cpu",
    dtype: str = "float32",
    quick: bool = False,
) -> None:
    """See `fastdiff demo --help`. quick: the distances are those of fewer pictures."""
    where, kind = arguments.device("--device", device), arguments.dtype("--dtype", dtype)
    demo = Demo(model_name, per_class, guidance, seed, where, kind)
    folder = writable_folder(out)  # after what refuses arguments, so that nothing is left of those
    say_if_busy()
    with progress() as bar:
        total = CONVERGED_STEPS + baseline_steps + sum(CURVE_STEPS) * len(CURVE_SOLVERS)  # about: the search adds some
        task = bar.add("distances from the converged solution", total=total)
        distances = Distances(demo, QUICK_PICTURES if quick else CURVE_PICTURES, lambda *_: bar.advance(task))
        chosen = steps or equal_steps(
            lambda n: distances.of("dpmpp-2m", n), distances.of("ddim", baseline_steps), baseline_steps
        )
        curves = distances.curves({*CURVE_STEPS, baseline_steps, chosen})
        bar.update(task, completed=total)
        plan = (
            ("baseline", "ddim", baseline_steps, False),
            ("solver alone", "dpmpp-2m", chosen, False),
            ("kernels alone", "ddim", baseline_steps, True),
            ("both", "dpmpp-2m", chosen, True),
        )
        for fast in (False, True):  # the first calls are slower: libraries load, the model is captured
            demo.sample("dpmpp-2m", 2, fast)
        runs = []
        for title, solver, count, fast in plan:
            task = bar.add(f"{title}: {solver}, {count} steps", total=count)
            with timed(where) as elapsed:
                samples = demo.sample(solver, count, fast, callback=lambda *_, task=task: bar.advance(task))
            bar.update(task, completed=count)
            runs.append(Run(title, solver, count, fast, samples, elapsed.seconds))
            if title in PICTURES:  # written at once: whatever comes later, they are there
                pictures.save_png(folder / PICTURES[title], pictures.grid(demo.pictures(samples), per_class), zoom=3)

    baseline, by_solver, by_kernels, both = runs
    summary = {
        "model": model_name,
        "pictures": len(demo.labels),
        "guidance": guidance,
        "seed": seed,
        "device": str(where),
        "dtype": dtype,
        "baseline": baseline.facts(baseline),
        "solver": by_solver.facts(baseline),
        "kernels": by_kernels.facts(baseline),
        "fastdiff": both.facts(baseline),
        "speed_up": round(baseline.seconds / both.seconds, 2),
        **demo.differences(baseline.samples, by_kernels.samples, baseline_steps),
        "errors": curves,
        "error_of_baseline": curves["ddim"][baseline_steps],
        "error_of_fastdiff": curves["dpmpp-2m"][chosen],
        "error_pictures": len(distances.converged),
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
            f"at equal steps the two paths differ by {summary['difference_at_equal_steps']:.2e} of the RMS, more than "
            f"{summary['tolerance']:.2g}; see {summary['report']}"
        )


def write(folder: Path, runs: list[Run], demo: Demo, summary: dict[str, Any]) -> None:
    """error.png and index.html; the pictures are there already."""
    import jinja2

    plot(summary["errors"], folder / "error.png")
    template = resources.files("fastdiff.cli").joinpath("demo.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    text = page.render(runs=runs, classes=demo.classes, summary=summary, machine=collect())
    with replacing(folder / "index.html") as path:
        path.write_text(text, encoding="utf-8")


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


def _compared(summary: dict[str, Any]) -> str:
    if summary["compared_with"] == "float32":
        return f"the optimized network in {summary['dtype']} differs from PyTorch's in float32"
    return "the network's two forms differ"


def _print(runs: list[Run], summary: dict[str, Any]) -> None:
    table = Table(title=f"{summary['pictures']} pictures from {summary['model']}, guidance {summary['guidance']:g}")
    for heading in ("path", "solver", "steps", "network", "seconds", "speed-up"):
        table.add_column(heading, justify="left" if heading in ("path", "solver", "network") else "right")
    for item in runs:
        speed_up = f"{runs[0].seconds / item.seconds:.2f}x"
        network = "fastdiff.optimize" if item.fast else "PyTorch"
        table.add_row(item.title, item.solver, str(item.steps), network, f"{item.seconds:.2f}", speed_up)
    console.print(table)
    console.print(
        f"distance from the converged solution (RMS, pixels in [-1, 1], {summary['error_pictures']} pictures): "
        f"baseline {summary['error_of_baseline']:.3f}, fastdiff {summary['error_of_fastdiff']:.3f}"
    )
    console.print(
        f"at equal steps {_compared(summary)} by {summary['difference_at_equal_steps']:.1e} of the RMS "
        f"(tolerance {summary['tolerance']:.2g}), in the largest pixel by "
        f"{summary['largest_difference_at_equal_steps']:.1e}"
    )
    console.print(f"report: [bold]{summary['report']}[/bold]")
