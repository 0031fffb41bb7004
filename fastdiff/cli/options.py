"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

MOST = 1_000_000  # pictures

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for a program to read.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
OwnDevice = Annotated[
    str | None, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1; cpu if not given.")
]
Dtype = Annotated[str, typer.Option(help="Type of the network: float32, bfloat16 or float16.")]
Model = Annotated[str, typer.Option(help="A bundled model, a diffusers folder, module:function or file.py:function.")]
Class = Annotated[str | None, typer.Option("--class", help="A class of the model, or `none`.")]
Prompt = Annotated[str | None, typer.Option(help="Words of emoji names, for a model that takes prompts.")]
Strength = Annotated[
    float | None, typer.Option(help="How much noise --image gets: 1 is noise alone; 0.6 if not given.")
]
Solver = Annotated[str | None, typer.Option(help="E.g. ddim, heun; dpmpp-2m or the model's own if not given.")]
Steps = Annotated[int | None, typer.Option(help="15, or the model's own, if not given.", min=1, max=10_000)]
Grid = Annotated[str | None, typer.Option(help="Where the steps are; the solver's own grid if not given.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="Scale of classifier-free guidance; 1 is none. 2, or the model's own, if not given."),
]
Seed = Annotated[int, typer.Option(help="Picture k of a seed is the same whatever --count is.", min=0, max=2**64 - 1)]
Batch = Annotated[int, typer.Option(help="Pictures sampled at once.", min=1, max=MOST)]
Zoom = Annotated[int, typer.Option(help="Size of a pixel in the file.", min=1, max=100)]
