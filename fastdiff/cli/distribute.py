"""`fastdiff distribute COMMAND`: what each command is called with."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdiff.cli import options

app = typer.Typer(
    no_args_is_help=True,
    help="Work for many processes or machines: thousands of samples, or the sweep of a profile. "
    "It can be stopped and gone on with at any time.",
)

Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes on this machine, each with a share of the cores or one GPU. Without it, this process works "
        "alone; with --cluster, how many there, as many as fit if not given.",
        min=1, max=10_000,
    ),
]  # fmt: skip
Threads = Annotated[int | None, typer.Option(help="Of each worker; its share of the cores if not given.", min=1)]
Cluster = Annotated[
    str | None,
    typer.Option(help="A Ray cluster: its address, e.g. 10.0.0.1:6379 or auto; local starts one on this machine."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the job in --out, which needs no other option.")]


@app.command()
def sample(
    model: Annotated[
        str | None,
        typer.Option(
            help="A bundled model, a diffusers folder, module:function or file.py:function; emoji-unet-32 if not given."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="How many samples; 1000 if not given.", min=1, max=1_000_000_000)
    ] = None,
    first: Annotated[
        int | None, typer.Option(help="Number of the first; 0 if not given. Sample k is the same for any.", min=0)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="0 if not given.", min=0, max=2**64 - 1)] = None,
    solver: options.OwnSolver = None,
    steps: options.OwnSteps = None,
    guidance: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance; 1 is none. The model's own if not given.")
    ] = None,
    grid: options.Grid = None,
    dtype: Annotated[
        str | None, typer.Option(help="Type of the network: float32, bfloat16 or float16; float32 if not given.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="auto, reference, cpu or optimize; auto if not given.")] = None,
    cache: Annotated[str | None, typer.Option(help="Reuse across steps: deep:2, deep:t=0.1, blocks:2.")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Samples at once; 32 if not given.", min=1, max=options.MOST)
    ] = None,
    shard: Annotated[
        int | None,
        typer.Option(
            help="Samples of a file, and of what one worker makes at a time: a multiple of --batch; 128 if not given.",
            min=1, max=options.MOST,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="npz (as sampled, float32), png, webdataset (tars of PNG and JSON), or none for statistics alone; npz "
            "if not given."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Also measure features: emoji, inception, pixels, module:function or file.py:function."),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(help="Of these keep all features, or moments (mean and covariance); features if not given."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Of all samples; the model's own conditions if not given.")] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="The same for a model with classes.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="A file of prompts or classes, one a line, which the samples have in turn.")
    ] = None,
    workers: Workers = None,
    threads: Threads = None,
    cluster: Cluster = None,
    device: options.OwnDevice = None,
    out: Annotated[
        str, typer.Option(help="A folder, or a URL such as s3://bucket/folder. All workers must reach it.")
    ] = "fastdiff-samples",
    resume: Resume = False,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Draw many samples into a folder: PNG, NumPy or WebDataset files, and statistics.

    Sample k of a seed has the same bits whoever makes it. After Ctrl-C, a kill or a power cut, --resume goes on.
    """
    from fastdiff.cli import distribute_sample as command

    told = command.prompts_of(prompt, class_name, prompts)
    command.run(
        model, out, workers, json, prompts=told, count=count, first=first, seed=seed, solver=solver, steps=steps,
        guidance=guidance, grid=grid, precision=dtype, backend=backend, cache=cache, batch=batch, shard=shard,
        format=format, features=features, statistics=statistics, device=device, threads=threads, cluster=cluster,
        resume=resume,
    )  # fmt: skip
