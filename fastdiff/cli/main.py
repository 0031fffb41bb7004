"""The command line. Each command is a module of its own, imported when it is called; those of `fastdiff bench`
are named in fastdiff.cli.bench."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from fastdiff.cli import bench, distribute, edit, failures, options, train_options

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(bench.app, name="bench")
app.add_typer(distribute.app, name="distribute")
app.add_typer(edit.app, name="edit")
_debug: list[bool] = []  # not empty after --debug


def _print_version(wanted: bool) -> None:
    if wanted:
        import fastdiff

        print(f"fastdiff {fastdiff.__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from.", envvar="FASTDIFF_DEBUG")
    ] = False,
) -> None:
    """Sample from diffusion models faster, with the result unchanged to the rounding of float32."""
    if debug:
        _debug.append(True)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Folder for the pictures and index.html.")] = "fastdiff-demo",
    model: Annotated[str, typer.Option(help="A bundled model.")] = "emoji-unet-32",
    per_class: Annotated[
        int | None, typer.Option(help="Pictures of each class; 4 if not given.", min=1, max=1_000)
    ] = None,
    baseline_steps: Annotated[
        int | None, typer.Option(help="DDIM steps of the baseline; 50 if not given.", min=1, max=10_000)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of DPM-Solver++(2M); as few as come as close as DDIM if not given.", min=1, max=10_000
        ),
    ] = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of the pictures, the same on all paths.", min=0, max=2**64 - 1)] = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    quick: Annotated[
        bool, typer.Option("--quick", help="1 picture of each class, 10 DDIM steps: whether it works, not how fast.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Sample the same pictures with plain PyTorch and with fastdiff; show what the solver and the kernels give."""
    from fastdiff.cli import demo as command

    per_class, baseline_steps = per_class or (1 if quick else 4), baseline_steps or (10 if quick else 50)
    command.run(out, model, per_class, baseline_steps, steps, guidance, seed, json, device, dtype, quick)


@app.command()
def sample(
    model: options.Model = "emoji-unet-32",
    class_: options.Class = None,
    prompt: options.Prompt = None,
    prompts: Annotated[str | None, typer.Option(help="A file of prompts, or of classes, one a line.")] = None,
    image: Annotated[str | None, typer.Option(help="A picture to start from, or a condition of the model.")] = None,
    strength: options.Strength = None,
    count: Annotated[
        int | None,
        typer.Option(help="How many, of each line of --prompts; 16 if not given, 1 a line.", min=1, max=options.MOST),
    ] = None,
    solver: options.OwnSolver = None,
    steps: options.OwnSteps = None,
    grid: options.Grid = None,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    batch: options.Batch = 32,
    out: Annotated[str, typer.Option(help="The PNG file to write.")] = "grid.png",
    zoom: options.Zoom = 4,
    device: options.OwnDevice = None,
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Sample pictures from a model into one PNG file."""
    from fastdiff.cli import sample as command

    command.run(
        model, class_, prompt, count, solver, steps, grid, guidance, seed, batch, out, zoom, json, prompts, image,
        strength, device, dtype,
    )  # fmt: skip


@app.command()
def profile(
    model: Annotated[
        str | None,
        typer.Option(
            help="A bundled model, a diffusers folder, module:function or file.py:function; emoji-unet-32 if not given."
        ),
    ] = None,
    solvers: Annotated[
        str | None, typer.Option(help="Names, separated by commas; five deterministic ones if not given.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Solver steps, separated by commas; from few to many if not given.")
    ] = None,
    guidance: Annotated[str | None, typer.Option(help="Scales; the model's own if not given. 1 is none.")] = None,
    interval: Annotated[str | None, typer.Option(help="low:high in lambda where guidance applies, or none.")] = None,
    guidance_every: Annotated[
        str | None, typer.Option(help="Steps from one unconditional output to the next, as 1,2,3.")
    ] = None,
    threshold: Annotated[str | None, typer.Option(help="Limits of x0, or none; dynamic as 1@0.995.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            "--dtype",
            help="Types of the network: float32, bfloat16, float16; bf16 and int8 with --backend optimize.",
        ),
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Samples at once.")] = None,
    grid: Annotated[str | None, typer.Option(help="Where the steps are; the solver's own if not given.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, reference, cpu, optimize.")] = None,
    cache: Annotated[str | None, typer.Option(help="Reuse across steps: none, deep:2, deep:t=0.1, blocks:2.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="How many of every setting; as many as the time allows if not given.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="How long it may take, if --samples is not given; 8 if neither is.")
    ] = None,
    reference_steps: Annotated[
        int | None, typer.Option(help="Steps of the converged trajectory, a multiple of 4; 200 if not given.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Sample k starts from the same noise in every setting.", min=0, max=2**64 - 1)
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="emoji, inception, pixels, module:function or file.py:function.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A folder of pictures to compare distributions with.")] = None,
    budget: Annotated[str | None, typer.Option(help="The most that a sample may take, e.g. 2s or 300ms.")] = None,
    target_rmse: Annotated[float | None, typer.Option(help="RMSE to the converged trajectory to reach.")] = None,
    find: Annotated[
        bool, typer.Option("--find", help="Search all that makes sampling faster for --minutes, instead of a sweep.")
    ] = False,
    target_ssim: Annotated[
        float | None, typer.Option(help="With --find: SSIM to the converged pictures; the start's own if no target is.")
    ] = None,
    target_frechet: Annotated[
        float | None, typer.Option(help="With --find: Frechet distance of features to the data.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="With --find: the solver you came with; ddim if not given.")] = None,
    start_steps: Annotated[int | None, typer.Option(help="With --find: its steps; 50 if not given.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1; cpu if not given.")] = None,
    workers: distribute.Workers = None,
    threads: distribute.Threads = None,
    cluster: distribute.Cluster = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder of the report and of the work; fastdiff-profile or fastdiff-find if not given."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in --out, which needs no other option.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Which solver, how many steps: measure speed against quality for a model, and write a report.

    What is not given is as in `fastdiff.profile` and `fastdiff.find`.
    """
    from fastdiff.cli import find as search
    from fastdiff.cli import profile as command

    axes = {
        "solvers": solvers, "steps": steps, "guidance": guidance, "intervals": interval,
        "guidance_every": guidance_every, "thresholds": threshold, "precisions": precision, "batches": batch,
        "grids": grid, "backends": backend, "caches": cache,
    }  # fmt: skip
    (search if find else command).run(
        model, axes, json, samples=samples, minutes=minutes, reference_steps=reference_steps, seed=seed,
        features=features, data=data, budget=budget, target_rmse=target_rmse, target_ssim=target_ssim,
        target_frechet=target_frechet, start=start, start_steps=start_steps, device=device, out=out,
        resume=resume, workers=workers, threads=threads, cluster=cluster,
    )  # fmt: skip


distribute.app.command()(profile)


@app.command()
def info(json: options.Json = False) -> None:
    """Versions, processor, instruction set, threads, and which kernels are in use or why not."""
    from fastdiff.cli import info as command

    command.run(json)


@app.command()
def solvers(
    name: Annotated[str | None, typer.Argument(help="One solver, with its options and what they do.")] = None,
    json: options.Json = False,
) -> None:
    """Every solver: order, model calls a step, whether it draws noise, source; or one of them in full."""
    from fastdiff.cli import solvers as command

    command.run(name, json)


@app.command()
def kernels(
    target: Annotated[list[str] | None, typer.Option(help="sm_80, sm_90, sm_100 or gfx942; all if not given.")] = None,
    op: Annotated[list[str] | None, typer.Option(help="An operator, or pointwise; all if not given.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Masks, few keys, other sizes and types as well.")] = False,
    out: Annotated[str | None, typer.Option(help="A file for the results as JSON.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that compile; 0 is one a core.", min=0, max=1_024)] = 0,
    json: options.Json = False,
) -> None:
    """Compile the Triton kernels for GPUs that need not be there: registers, stack, shared memory, bytes moved.

    Needs Triton, which has wheels for Linux: python -m pip install triton.
    """
    from fastdiff.cli import kernels as command

    command.run(target or (), op or (), everything, out, json, jobs)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="A bundled model.")] = "emoji-unet-32",
    batch: Annotated[int, typer.Option(help="How many samples.", min=1, max=4_096)] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the input.", min=0, max=2**63 - 1)] = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Compare a model through fastdiff.optimize with itself: its output and every node; exit status 1 if it differs."""
    from fastdiff.cli import verify as command

    command.run(model, batch, seed, json, device, dtype)


app.command()(train_options.train)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The `fastdiff` command. What goes wrong ends with one line and exit status 2; with --debug, with a traceback."""
    _debug.clear()
    try:
        _refuse_the_other_fastdiff()
        from fastdiff.cli.console import show_messages

        show_messages()
        _check_environment()
        given = sys.argv[1:] if arguments is None else arguments
        failures.refuse_empty(given)
        failures.refuse_twice(given)
        status = app(arguments, prog_name="fastdiff", standalone_mode=False)
    except Exception as error:
        if _debug:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            print(f"fastdiff: {failures.one_line(error)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def _check_environment() -> None:
    from fastdiff.runtime import environment

    environment.check()


def _refuse_the_other_fastdiff() -> None:
    """PyPI has an unrelated text-diff library that also installs a package `fastdiff`, over this one."""
    import fastdiff

    if not hasattr(fastdiff, "sample"):
        sys.exit(
            "fastdiff: the package `fastdiff` here is not torch-fastdiff but the unrelated text-diff library of that "
            "name, or what its removal left. Remove it and install this one again: "
            "pip uninstall -y fastdiff torch-fastdiff, then python -m pip install ."
        )
