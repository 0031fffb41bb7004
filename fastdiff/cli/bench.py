"""`fastdiff bench SUITE`: what each suite is called with. A suite is imported when it is called."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

Json = Annotated[str | None, typer.Option(help="A file for the results.")]
Html = Annotated[str | None, typer.Option(help="A page for the results, which needs no network.")]


class Suites(TyperGroup):
    """An unknown suite ends with one line, as other unknown names do."""

    def get_command(self, ctx, cmd_name):
        """The suite of that name. Raises ValueError that lists the near names."""
        from fastdiff.errors import unknown

        if cmd_name not in self.commands:
            raise unknown("suite", cmd_name, self.commands)
        return super().get_command(ctx, cmd_name)


app = typer.Typer(cls=Suites, invoke_without_command=True)


@app.callback()
def suites(context: typer.Context) -> None:
    """Time what fastdiff has, checked first, against PyTorch and others; or compare two results."""
    if context.invoked_subcommand is None:
        group = context.command
        assert isinstance(group, TyperGroup)
        width = max(map(len, group.commands))
        for name, command in group.commands.items():
            typer.echo(f"fastdiff bench {name:<{width}}  {command.get_short_help_str(limit=120)}")


@app.command()
def ops(
    only: Annotated[str | None, typer.Option(help="Operators, separated by commas; all if not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="On a GPU: every candidate and tile, into the file --out, for the tables.")
    ] = False,
    out: Annotated[str | None, typer.Option(help="The file of --sweep.")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long --sweep may take; 3 if not given.")] = None,
    json: Json = None,
    html: Html = None,
) -> None:
    """The operators against PyTorch's: on the CPU from a checkout, on a GPU inside CUDA graphs."""
    from fastdiff import arguments
    from fastdiff.cli import bench_suites
    from fastdiff.errors import expect

    if sweep:
        from fastdiff.cli import bench_sweep

        expect(not (json or html), "--sweep writes --out, and neither --json nor --html")
        bench_sweep.run(bench_suites.words("--only", only), arguments.device("--device", device), out, minutes)
        return
    expect(out is None and minutes is None, "--out and --minutes are for --sweep")
    bench_suites.run("ops", None, only, json, html, device=device)


@app.command()
def models(
    against: Annotated[
        str | None, typer.Option(help="eager,compile,openvino,onnxruntime,diffusers; all that are there if not given.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", "--rows", help="Of small,ddpm,sd15,sdxl,vae,dit,controlnet,video,imagen-base."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    minutes: Annotated[
        float | None, typer.Option(help="How long all may take; 6 on a GPU, no limit on the CPU if not given.")
    ] = None,
    json: Json = None,
    html: Html = None,
) -> None:
    """Whole models, against PyTorch, and on the CPU OpenVINO and ONNX Runtime; needs a checkout."""
    from fastdiff.cli import bench_suites

    bench_suites.run("models", against, only, json, html, device=device, dtype=dtype, minutes=minutes)


@app.command()
def solvers(
    only: Annotated[str | None, typer.Option(help="Solvers, separated by commas; all if not given.")] = None,
    json: Json = None,
    html: Html = None,
) -> None:
    """A step of each solver, against diffusers' schedulers; needs a checkout."""
    _run("solvers", only, json, html)


@app.command()
def scaling(
    only: Annotated[str | None, typer.Option(help="Of resolution,batch,channels,sequence,threads.")] = None,
    json: Json = None,
    html: Html = None,
) -> None:
    """How the time of a model grows with its sizes and with threads."""
    _run("scaling", only, json, html)


@app.command()
def convergence(
    only: Annotated[str | None, typer.Option(help="Solvers, separated by commas.")] = None,
    json: Json = None,
    html: Html = None,
) -> None:
    """The error of solvers against model calls, on a model with an exact solution."""
    _run("convergence", only, json, html)


@app.command("time-to-quality")
def time_to_quality(
    only: Annotated[
        str | None, typer.Option(help="Models, separated by commas; the three bundled ones if not given.")
    ] = None,
    folder: Annotated[str | None, typer.Option(help="A diffusers folder, beside them.")] = None,
    minutes: Annotated[float, typer.Option(help="How long all of it may take.")] = 25,
    out: Annotated[str, typer.Option(help="Folder of the page and of the work, which is gone on with.")] = (
        "fastdiff-time-to-quality"
    ),
    json: Json = None,
) -> None:
    """From DDIM with 50 steps by PyTorch to the setting that is found: how much faster, factor by factor."""
    from fastdiff.cli import bench_time_to_quality as command
    from fastdiff.cli.bench_suites import words

    command.time_to_quality(words("--only", only), folder, minutes, out, json)


@app.command()
def gpu(
    op: Annotated[list[str] | None, typer.Option(help="An operator; all if not given.")] = None,
    check: Annotated[bool, typer.Option(help="Small cases under NVIDIA's compute-sanitizer first.")] = True,
    json: Annotated[str | None, typer.Option(help="A file for the results; - prints them.")] = None,
) -> None:
    """The GPU kernels: checked on the device, then timed against PyTorch's; needs a GPU."""
    from fastdiff.cli import bench_gpu

    bench_gpu.run(op or (), check, None if json == "-" else json, json == "-")


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="The results of a suite, as JSON.")],
    after: Annotated[str, typer.Argument(help="One of the same suite, later.")],
) -> None:
    """Two results of a suite: what changed; exit status 1 if something became slower."""
    from fastdiff.cli import bench_suites

    bench_suites.compare(before, after)


def _run(suite: str, only: str | None, json: str | None, html: str | None, against: str | None = None) -> None:
    from fastdiff.cli import bench_suites

    bench_suites.run(suite, against, only, json, html)
