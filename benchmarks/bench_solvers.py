"""The solver's step without the model: fastdiff's engines against diffusers' schedulers, for all solvers that both
have.

    python benchmarks/bench_solvers.py [--solvers ddim,dpmpp-2m] [--json FILE]

Every pair is checked against each other before it is timed. A step is everything between two model calls: the model is
a function that returns a tensor made beforehand. "of the copy" compares the C++ engine's time with that of copying the
bytes that the step has to read and write, which is the least that any implementation can take once they do not fit in a
cache.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fastdiff
from fastdiff.bench.suites import BAD_ARGUMENT
from fastdiff.bench.timing import copy_bandwidth, interleave
from fastdiff.cli.info import collect
from fastdiff.process.prediction import get_prediction
from fastdiff.process.schedules import RectifiedFlow, Schedule, VPDiscrete
from fastdiff.program import KINDS, Program
from fastdiff.program.tracing import trace
from fastdiff.solvers import Solver, get_solver

SHAPES = {(1, 4, 64, 64): (50, 25), (8, 4, 128, 128): (50, 7), (2, 3, 1024, 1024): (50, 2)}  # shape -> (steps, rounds)
CHECKED_STEPS = 50
TOLERANCE = (
    CHECKED_STEPS * 20 * 2.0**-23
)  # float32 tables and states: 50 steps, each of a few operations amplified by up to 20
VP = VPDiscrete.scaled_linear()
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@dataclass(frozen=True)
class Pair:
    """A solver of ours and the scheduler of diffusers that takes the same steps.

    exploding: its state is x / alpha, which it scales before the model.
    """

    solver: Solver
    scheduler: str
    options: dict[str, Any]
    exploding: bool = False
    schedule: Schedule = VP
    prediction: str = "eps"

    def make(self, steps: int) -> Any:
        scheduler = getattr(diffusers, self.scheduler)(**self.options)
        scheduler.set_timesteps(steps)
        return scheduler

    def times(self, steps: int) -> np.ndarray:
        """The grid of ours at diffusers' steps."""
        scheduler = self.make(steps)
        if not hasattr(scheduler, "sigmas"):
            return np.append((np.unique(scheduler.timesteps.numpy())[::-1] + 1) / 1000, 0.0)
        sigmas = np.unique(scheduler.sigmas.double().numpy())[::-1]
        if self.schedule is not VP:
            return sigmas
        noisy = sigmas[sigmas > 0]  # sigma / alpha
        return np.concatenate([np.minimum(VP.t_of_lam(-np.log(noisy)), VP.t_max), sigmas[sigmas == 0]])


def pairs() -> dict[str, Pair]:
    """By the name of our solver."""
    vp = dict(BETAS, timestep_spacing="leading", steps_offset=1)
    multistep = dict(vp, final_sigmas_type="zero")
    plain = dict(vp, clip_sample=False)
    found = [
        Pair(get_solver("ddim"), "DDIMScheduler", plain),
        Pair(get_solver("ddpm"), "DDPMScheduler", plain),
        Pair(get_solver("plms"), "PNDMScheduler", dict(vp, skip_prk_steps=True, set_alpha_to_one=True)),
        Pair(get_solver("euler"), "EulerDiscreteScheduler", vp, exploding=True),
        Pair(get_solver("euler-ancestral"), "EulerAncestralDiscreteScheduler", vp, exploding=True),
        Pair(get_solver("heun"), "HeunDiscreteScheduler", vp, exploding=True),
        Pair(get_solver("dpm-2"), "KDPM2DiscreteScheduler", vp, exploding=True),
        Pair(get_solver("dpm-2-ancestral"), "KDPM2AncestralDiscreteScheduler", vp, exploding=True),
        Pair(get_solver("lms"), "LMSDiscreteScheduler", vp, exploding=True),
        Pair(get_solver("dpmpp-2m"), "DPMSolverMultistepScheduler", dict(multistep, solver_order=2)),
        Pair(get_solver("dpmpp-3m"), "DPMSolverMultistepScheduler", dict(multistep, solver_order=3)),
        Pair(
            get_solver("dpmpp-2m-sde"),
            "DPMSolverMultistepScheduler",
            dict(multistep, solver_order=2, algorithm_type="sde-dpmsolver++"),
        ),
        Pair(get_solver("unipc-2"), "UniPCMultistepScheduler", dict(multistep, solver_order=2)),
        Pair(get_solver("unipc-3"), "UniPCMultistepScheduler", dict(multistep, solver_order=3)),
        Pair(
            get_solver("flow-euler"),
            "FlowMatchEulerDiscreteScheduler",
            dict(shift=3.0),
            schedule=RectifiedFlow(3.0),
            prediction="flow",
        ),
    ]
    return {pair.solver.name: pair for pair in found}


def theirs(pair: Pair, scheduler: Any, model: Callable[..., Tensor], x: Tensor, first: float, steps: int) -> Tensor:
    """diffusers' loop; x is the state of ours at the first time, where alpha is `first`."""
    scheduler.set_timesteps(steps)
    if pair.exploding:
        x = x / first
    options = {"generator": torch.Generator().manual_seed(0)} if pair.solver.stochastic else {}
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for t in scheduler.timesteps:
        x = scheduler.step(model(scale(x, t), t), t, x, return_dict=False, **options)[0]
    return x


def ours(
    pair: Pair, times: np.ndarray, model: Callable[..., Tensor], x: Tensor, noise: torch.Generator | None = None
) -> Tensor:
    """noise: that of diffusers, to compare; else the kernel makes its own where it needs it."""
    return fastdiff.sample(
        model,
        x,
        schedule=pair.schedule,
        prediction=pair.prediction,
        solver=pair.solver,
        grid=times,
        seed=0,
        noise=noise,
    )


def difference(pair: Pair, shape: tuple[int, ...], steps: int) -> float:
    """Between both on a model that depends on x, the same noise: the largest, relative to the RMS."""
    x, times = torch.randn(shape, generator=torch.Generator().manual_seed(0)), pair.times(steps)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) * 0.7

    expected = theirs(pair, pair.make(steps), model, x, pair.schedule.point(times[0]).alpha, steps)
    result = ours(pair, times, model, x, noise=torch.Generator().manual_seed(0))
    return float((result - expected).abs().max() / expected.square().mean().sqrt())


def bytes_a_step(program: Program, elements: int, steps: int) -> float:
    """Read and written by the combines: every source and every output once."""
    passes = sum(
        len(slots) + sum(KINDS[kind] != "noise" for kind in kinds) for slots, kinds, _, _ in program.tables.values()
    )
    return 4.0 * elements * passes / steps


def measure(pair: Pair, shape: tuple[int, ...], steps: int, rounds: int, bandwidth: float) -> dict[str, Any]:
    """Times a step of both, in microseconds: median, 20th and 80th percentile. Exits if they compute different
    samples."""
    error = difference(pair, shape, CHECKED_STEPS)
    if not error <= TOLERANCE:
        raise SystemExit(f"{pair.solver.name} {shape}: differs from {pair.scheduler} by {error:.2e}; nothing was timed")
    scheduler, times = pair.make(steps), pair.times(steps)
    first = pair.schedule.point(times[0]).alpha
    x, out = torch.randn(shape), torch.randn(shape)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return out

    def with_backend(backend: str) -> Callable[[], None]:
        def run() -> None:
            with fastdiff.use(backend):
                ours(pair, times, model, x)

        return run

    timings = interleave(
        {
            "diffusers": lambda: theirs(pair, scheduler, model, x, first, steps),
            "set_timesteps": lambda: scheduler.set_timesteps(steps),
            "reference": with_backend("reference"),
            "cpu": with_backend("cpu"),
        },
        rounds=rounds,
        warmup=1,
    )
    # Ours is a whole call of fastdiff.sample over its steps, with its buffers and tables; of diffusers only the steps.
    setting_up = timings.pop("set_timesteps").median
    step = {name: [1e6 * s / steps for s in (t.median, t.p20, t.p80)] for name, t in timings.items()}
    step["diffusers"] = [us - 1e6 * setting_up / steps for us in step["diffusers"]]
    prediction = get_prediction(pair.prediction)
    started = time.perf_counter()
    for _ in range(5):
        program = trace(pair.solver, pair.schedule, times, prediction)
    least = 1e6 * bytes_a_step(program, math.prod(shape), steps) / bandwidth
    return {
        "solver": pair.solver.name,
        "shape": shape,
        "difference": error,
        "microseconds_a_step": step,
        "trace_milliseconds": 1e3 * (time.perf_counter() - started) / 5,
        "speed_up_over_diffusers": step["diffusers"][0] / step["cpu"][0],
        "time_of_the_copy": step["cpu"][0] / least,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solvers", help="names separated by commas; all that diffusers has if not given")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    known = pairs()
    chosen = arguments.solvers.split(",") if arguments.solvers else list(known)
    for name in chosen:
        if name not in known:
            print(f"diffusers has no scheduler of {name!r}; known: {', '.join(known)}", file=sys.stderr)
            raise SystemExit(BAD_ARGUMENT)
    results = []
    print(
        f"diffusers {diffusers.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True
    )
    table = Table(title="us a step, median (p20 to p80)")
    for heading in (
        "shape",
        "solver",
        "diffusers",
        "reference",
        "cpu",
        "over diffusers",
        "of the copy",
        "trace ms",
        "diff",
    ):
        table.add_column(heading)
    for shape, (steps, rounds) in SHAPES.items():
        bandwidth = copy_bandwidth(4 * math.prod(shape))
        for name in chosen:
            result = measure(known[name], shape, steps, rounds, bandwidth)
            results.append(result)
            print(f"{name} {shape}: {result['speed_up_over_diffusers']:.1f}x diffusers", flush=True)
            spread = [f"{m:.1f} ({a:.1f} to {b:.1f})" for m, a, b in result["microseconds_a_step"].values()]
            table.add_row(
                "x".join(map(str, shape)),
                name,
                *spread,
                f"{result['speed_up_over_diffusers']:.1f}x",
                f"{result['time_of_the_copy']:.2f}",
                f"{result['trace_milliseconds']:.1f}",
                f"{result['difference']:.0e}",
            )
    Console(width=150).print(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machine": collect(), "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
