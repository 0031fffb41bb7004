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
Prompt = Annotated[
    str | None, typer.Option(help="For a model that takes prompts; bundled ones know the words of emoji names.")
]
Strength = Annotated[
    float | None, typer.Option(help="How much noise --image gets: 1 is noise alone; 0.6 if not given.")
]
Solver = Annotated[str, typer.Option(help="A solver, e.g. dpmpp-2m, ddim, heun, ddpm.")]
OwnSolver = Annotated[
    str | None, typer.Option("--solver", help="E.g. ddim, heun; dpmpp-2m or the model's own if not given.")
]
Steps = Annotated[int, typer.Option(help="Solver steps.", min=1, max=10_000)]
OwnSteps = Annotated[
    int | None, typer.Option("--steps", help="15, or the model's own, if not given.", min=1, max=10_000)
]
Grid = Annotated[str | None, typer.Option(help="Where the steps are; the solver's own grid if not given.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="Scale of classifier-free guidance; 1 is none. 2, or the model's own, if not given."),
]
Seed = Annotated[int, typer.Option(help="Picture k of a seed is the same whatever --count is.", min=0, max=2**64 - 1)]
Batch = Annotated[int, typer.Option(help="Pictures sampled at once.", min=1, max=MOST)]
Zoom = Annotated[int, typer.Option(help="Size of a pixel in the file.", min=1, max=100)]

# of `fastdiff edit`
Image = Annotated[str, typer.Option(help="The picture, a PNG or JPEG file; its middle is taken at the model's size.")]
Mask = Annotated[str, typer.Option(help="A picture as large as --image, with the hole in the colour --hole.")]
Hole = Annotated[str, typer.Option(help="What the hole is in --mask: black or white.")]
Count = Annotated[int, typer.Option(help="How many results, each of other noise.", min=1, max=1_000)]
Out = Annotated[str, typer.Option(help="The PNG file of the result; with --count 2, edited-1.png and edited-2.png.")]
Strip = Annotated[
    str | None, typer.Option(help="The PNG file that shows before, mask and after; OUT-strip.png if not given.")
]
StripZoom = Annotated[int, typer.Option("--zoom", help="Size of a pixel in the strip.", min=1, max=100)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
