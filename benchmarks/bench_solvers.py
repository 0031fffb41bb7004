"""The solver's step without the model: fastdiff's engines against diffusers' scheduler, DPM-Solver++(2M).

    python benchmarks/bench_solvers.py [--json FILE]

Both are checked against each other before anything is timed. A step is everything between two model calls: the model
is a function that returns a tensor made beforehand.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from rich.console import Console
from rich.table import Table

import fastdiff
from fastdiff import engine
from fastdiff.bench.timing import interleave
from fastdiff.cli.info import collect
from fastdiff.noise import CounterNoise
from fastdiff.prediction import get_prediction
from fastdiff.program import Program
from fastdiff.schedules import VPDiscrete
from fastdiff.tracing import trace

SHAPES = [(1, 4, 64, 64), (8, 4, 128, 128)]
STEPS = 50
TOLERANCE = 1e-5  # float32, relative to the RMS
SCHEDULE = VPDiscrete.scaled_linear()


def diffusers_scheduler() -> DPMSolverMultistepScheduler:
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(STEPS)
    return scheduler


def diffusers_run(scheduler: DPMSolverMultistepScheduler, model, x: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x, return_dict=False)[0]
    return x


def program(scheduler: DPMSolverMultistepScheduler) -> Program:
    """Ours at diffusers' own time steps."""
    times = np.append((scheduler.timesteps.numpy() + 1) / 1000, 0.0)
    return trace("dpmpp-2m", SCHEDULE, times, get_prediction("eps"))


def check(scheduler: DPMSolverMultistepScheduler, shape: tuple[int, ...]) -> float:
    """Both on a model that depends on x and t. Returns the difference relative to the RMS; exits if it is too large."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (0.5 + t.reshape(-1)[0] / 2000)

    theirs = diffusers_run(scheduler, model, x)
    ours = engine.run(program(scheduler), model, x, counter=CounterNoise.of(0, shape[0]))
    difference = float((ours - theirs).abs().max() / theirs.square().mean().sqrt())
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"{shape}: fastdiff and diffusers differ by {difference:.2e}, more than {TOLERANCE:g}; nothing was timed"
        )
    return difference


def measure(shape: tuple[int, ...]) -> dict:
    scheduler = diffusers_scheduler()
    difference = check(scheduler, shape)
    x, out = torch.randn(shape), torch.randn(shape)
    times = np.append((scheduler.timesteps.numpy() + 1) / 1000, 0.0)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return out

    def ours(backend: str):
        def run() -> None:
            with fastdiff.use(backend):
                fastdiff.sample(model, x, schedule=SCHEDULE, prediction="eps", solver="dpmpp-2m", grid=times, seed=0)

        return run

    timings = interleave(
        {
            "diffusers": lambda: diffusers_run(scheduler, model, x),
            "set_timesteps": lambda: scheduler.set_timesteps(STEPS),
            "reference": ours("reference"),
            "cpu": ours("cpu"),
        },
        rounds=40,
    )
    # Ours is a whole call of fastdiff.sample over its steps, with its buffers and tables; of diffusers only the steps.
    setting_up = timings.pop("set_timesteps").median
    steps = {name: [1e6 * s / STEPS for s in (t.median, t.p20, t.p80)] for name, t in timings.items()}
    steps["diffusers"] = [us - 1e6 * setting_up / STEPS for us in steps["diffusers"]]
    started = time.perf_counter()
    for _ in range(20):
        program(scheduler)
    return {
        "shape": shape,
        "difference": difference,
        "microseconds_a_step": steps,
        "trace_milliseconds": 1e3 * (time.perf_counter() - started) / 20,
        "speed_up_over_diffusers": {name: steps["diffusers"][0] / s[0] for name, s in steps.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    results = [measure(shape) for shape in SHAPES]
    table = Table(title=f"DPM-Solver++(2M), us a step, median (p20 to p80), {torch.get_num_threads()} threads")
    for heading in ("shape", "who", "us a step", "over diffusers", "difference"):
        table.add_column(heading)
    for result in results:
        for name, (median, p20, p80) in result["microseconds_a_step"].items():
            table.add_row(str(result["shape"]), name, f"{median:.1f} ({p20:.1f} to {p80:.1f})",
                          f"{result['speed_up_over_diffusers'][name]:.1f}x", f"{result['difference']:.1e}")  # fmt: skip
        table.caption = f"Tracing, the first time only: {result['trace_milliseconds']:.1f} ms for {STEPS} steps"
    Console(width=110).print(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machine": collect(), "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
